"""A mail server on loopback for the tests of alerts: aiosmtpd with STARTTLS and AUTH, which takes mail for nobody else.

Arguments: certificate, key, user, password, file. Prints its port; writes each mail into the file, one JSON a line."""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

CERTIFICATE, KEY, USER, PASSWORD, FILE = sys.argv[1:]


class Handler:
    async def handle_DATA(self, server, session, envelope):
        said = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None,
            "content": envelope.content.decode("utf-8", "backslashreplace"),
        }
        with open(FILE, "a", encoding="utf-8") as out:
            out.write(json.dumps(said) + "\n")
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    good = data.login == USER.encode() and data.password == PASSWORD.encode()
    return AuthResult(success=good, handled=good)


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)

    def protocol():
        return SMTP(
            Handler(),
            hostname="mail.test",
            tls_context=context,
            require_starttls=True,
            auth_required=True,
            authenticator=authenticate,
        )

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
