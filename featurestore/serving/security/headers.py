"""The names of the headers, or metadata, by which a call says who makes it and which one it is."""

API_KEY = "x-api-key"
AUTHORIZATION = "authorization"
REQUEST_ID = "x-request-id"
TRACE_PARENT = "traceparent"
TRACE_STATE = "tracestate"
