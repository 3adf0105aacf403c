"""`tinywave demo` as it is started: a process that serves the page, with the shipped models."""

import httpx

from tinywave.benchmarks.space import serve


def test_the_verb_serves_the_page_and_its_endpoints():
    with serve() as address:
        assert "TinyWave" in httpx.get(address).text
        endpoints = httpx.get(f"{address}/gradio_api/info").json()["named_endpoints"]
    assert {"/continue_speech", "/interleaved", "/compare", "/encode"} <= set(endpoints)
