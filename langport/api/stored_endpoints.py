"""The table of what `StoredApi` answers, apart from it, so that a gateway knows the paths before it loads the rest."""

CHATS, CHAT = "/v1/chat/completions", "/v1/chat/completions/{completion_id}"
FILES, ONE_FILE = "/v1/files", "/v1/files/{file_id}"
RESPONSE, COMPACT = "/v1/responses/{response_id}", "/v1/responses/compact"
UPLOADS, UPLOAD = "/v1/uploads", "/v1/uploads/{upload_id}"
BATCHES, BATCH = "/v1/batches", "/v1/batches/{batch_id}"

ENDPOINTS = (
    ("GET", CHATS),
    ("GET", CHAT),
    ("POST", CHAT),
    ("DELETE", CHAT),
    ("GET", CHAT + "/messages"),
    ("GET", RESPONSE),
    ("DELETE", RESPONSE),
    ("POST", RESPONSE + "/cancel"),
    ("GET", RESPONSE + "/input_items"),
    ("POST", COMPACT),
    ("POST", FILES),
    ("GET", FILES),
    ("GET", ONE_FILE),
    ("DELETE", ONE_FILE),
    ("GET", ONE_FILE + "/content"),
    ("POST", UPLOADS),
    ("POST", UPLOAD + "/parts"),
    ("POST", UPLOAD + "/complete"),
    ("POST", UPLOAD + "/cancel"),
    ("POST", BATCHES),
    ("GET", BATCHES),
    ("GET", BATCH),
    ("POST", BATCH + "/cancel"),
)
"""Method and path of all that is answered here."""
STREAMED_BODIES = frozenset((("POST", FILES), ("POST", UPLOAD + "/parts")))
"""Those whose body must come as it is sent, because it does not fit into memory."""
