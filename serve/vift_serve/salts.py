"""The prefix cache under fusion: KV of one setting is never read under another.

Each block of vLLM's cache is found by a hash over its tokens, images and a salt. A fused request gets a salt of its
setting, whatever the client says; and where the answer is not fused, the blocks that hold its tokens are for that
request alone: in the next turn the same tokens stand in the prompt, and are fused.
"""

import hashlib


def salt_request(request, salt: str, answer: bool, block_size: int) -> None:
    """Hashes the request's blocks again with `salt`, and unless `answer`, those with its answer for itself alone."""
    request.cache_salt = salt if request.cache_salt is None else f"{request.cache_salt} {salt}"
    if request._block_hasher is None:  # no prefix cache
        return
    if not answer:
        request._block_hasher = OwnAnswer(request._block_hasher, block_size)
    request.block_hashes = []
    request.update_block_hashes()


class OwnAnswer:
    """A hasher of blocks (`request` -> hashes of its new full blocks) under which answers are not shared."""

    def __init__(self, hasher, block_size: int):
        self.hasher, self.block_size = hasher, block_size

    def __call__(self, request) -> list[bytes]:
        # the salt is hashed into the first block only, and each hash into the next one
        old, hashes = len(request.block_hashes), self.hasher(request)
        first, own = max(request.num_prompt_tokens // self.block_size - old, 0), request.request_id.encode()
        return hashes[:first] + [hashlib.sha256(own + one).digest() for one in hashes[first:]]
