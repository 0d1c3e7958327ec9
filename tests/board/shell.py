"""Runs what it is told, in a machine made for tests: a command comes, and its exit status and what it said go back."""

import http.server
import subprocess


class Shell(http.server.BaseHTTPRequestHandler):
    """Takes a command as the body of a POST."""

    def do_POST(self) -> None:
        """Runs it."""
        command = self.rfile.read(int(self.headers["Content-Length"])).decode()
        done = subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.send_response(200 if done.returncode == 0 else 500)
        self.send_header("Content-Length", str(len(done.stdout)))
        self.end_headers()
        self.wfile.write(done.stdout)


http.server.ThreadingHTTPServer(("0.0.0.0", 18888), Shell).serve_forever()
