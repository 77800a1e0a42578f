"""Voilà's settings for the explorer: private, in no frame, and a kernel for as long as its page."""

import asyncio

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.web import RequestHandler

# A picture of the size that the page takes, and what a message needs besides.
LARGEST_MESSAGE = 24 * 2**20
UNFRAMED = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY"}
OWN_PARTS = "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:"
OWN_BASE = "base-uri 'self'; form-action 'self'"


class ConnectionOfOnePage(ZMQChannelsWebsocketConnection):
    """Ends the kernel when its page is closed or loaded again: it holds a model."""

    def disconnect(self) -> None:
        super().disconnect()
        if self.kernel_id in self.multi_kernel_manager:
            ending = self.multi_kernel_manager.shutdown_kernel(self.kernel_id, now=True)
            self._ending = asyncio.ensure_future(ending)


def _set_headers(handler: RequestHandler) -> None:
    """Of files that no Jupyter handler serves; the others take them from the settings below."""
    for name, value in UNFRAMED.items():
        handler.set_header(name, value)


RequestHandler.set_default_headers = _set_headers

c = get_config()  # noqa: F821
c.Voila.ip = "127.0.0.1"
c.Voila.auto_token = True
c.Voila.open_browser = False
c.Voila.kernel_websocket_connection_class = ConnectionOfOnePage
c.Voila.tornado_settings = {
    "headers": UNFRAMED
    | {"Content-Security-Policy": f"{OWN_PARTS}; {OWN_BASE}; frame-ancestors 'none'"},
    "websocket_max_message_size": LARGEST_MESSAGE,
}
# Sockets in a folder that only this user can read, instead of ports that all users can reach.
c.KernelManager.transport = "ipc"
# Of a page that was left before it was there.
c.MappingKernelManager.cull_idle_timeout = 300
c.MappingKernelManager.cull_interval = 60
