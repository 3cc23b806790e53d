"""KV events: what entered and left the prefix cache, for routers, in the wire format of vLLM 0.33.

`KvEventsConfig` is the option; `publisher` sends, `subscriber` rebuilds the cache's content elsewhere, `wire`
holds the frames. Sending and receiving need pyzmq and msgspec: `pip install 'octavo[events]'`.
"""

from octavo.kv_events.settings import KvEventsConfig

__all__ = ["KvEventsConfig"]
