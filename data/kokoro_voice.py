"""Kokoro voices."""
TEST_VOICES = (
    "af_bella", "af_nova", "af_sarah", "am_echo", "am_michael", "am_puck",
    "bf_emma", "bf_isabella", "bm_fable", "bm_george",
)  # fmt: skip
TRAIN_VOICES = (
    "af_alloy", "af_aoede", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_river", "af_sky",
    "am_adam", "am_eric", "am_fenrir", "am_liam", "am_onyx", "am_santa",
    "bf_alice", "bf_lily", "bm_daniel", "bm_lewis",
)  # fmt: skip
class KokoroVoice: pass
