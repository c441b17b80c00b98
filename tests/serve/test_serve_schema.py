"""The description of the API holds for what the server does, by schemathesis."""

import pytest

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")


def test_the_page_of_the_api_is_complete(server):
    schema = server.app.openapi()
    assert {
        "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions", "/v1/models", "/health",
        "/metrics", "/ossicle/analysis",
    } <= set(schema["paths"])  # fmt: skip
    fields = schema["components"]["schemas"]["TranscriptionForm"]["properties"]
    assert {"file", "model", "timestamp_granularities[]", "keywords[]", "languages[]"} <= set(fields)


@pytest.mark.slow
def test_every_operation_keeps_to_the_description(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    from schemathesis.specs.openapi.checks import positive_data_acceptance  # random bytes are no recording

    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        seen.add(operation.path)

        @hypothesis.settings(
            max_examples=12, deadline=None, derandomize=True, suppress_health_check=[*hypothesis.HealthCheck]
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=30)

        check()
    assert len(seen) > 8
