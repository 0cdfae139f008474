#!/usr/bin/env python3
"""A web server and a mail server with TLS, of Python and of aiosmtpd: tests/notify/servers.py CERTIFICATE KEY LOG

Prints `https PORT` and `smtp PORT`. What is posted and mailed is written to LOG, a line of JSON each. The mail server takes
nothing before STARTTLS and a login as `guardian` with `the-password`.
"""

import asyncio
import json
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from aiosmtpd.smtp import SMTP, AuthResult

CERTIFICATE, KEY, LOG = sys.argv[1:]


def context():
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(CERTIFICATE, KEY)
    return made


def note(**what):
    with open(LOG, "a") as log:
        log.write(json.dumps(what) + "\n")


class Posted(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        note(path=self.path, body=body, tls=self.connection.version())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *words):
        pass


class Web(HTTPServer):
    def handle_error(self, request, client_address):
        pass  # A client that does not trust the certificate goes away.


class Mailed:
    async def handle_DATA(self, server, session, envelope):
        note(mail=envelope.content.decode(), to=envelope.rcpt_tos, tls=session.ssl is not None)
        return "250 taken"


def log_in(server, session, envelope, mechanism, data):
    is_known = (data.login, data.password) == (b"guardian", b"the-password")
    # Not handled: the refusal is the server's.
    return AuthResult(success=is_known, handled=is_known)


async def mail():
    loop = asyncio.get_running_loop()
    tls = context()
    listening = socket.create_server(("127.0.0.1", 0))

    def talk():
        return SMTP(Mailed(), tls_context=tls, require_starttls=True, auth_required=True, authenticator=log_in, loop=loop)

    server = await loop.create_server(talk, sock=listening)
    print("smtp", listening.getsockname()[1], flush=True)
    await server.serve_forever()


web = Web(("127.0.0.1", 0), Posted)
web.socket = context().wrap_socket(web.socket, server_side=True)
threading.Thread(target=web.serve_forever, daemon=True).start()
print("https", web.server_port, flush=True)
asyncio.run(mail())
