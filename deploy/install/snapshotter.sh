#!/bin/sh
# Starts the program with the interpreter, packages and libraries of its own tree. Nothing of the node's Python is
# read: -I ignores PYTHON* variables, the user's packages and the current directory, -S the site's configuration.
# The tree is found by this file's real path, so that a daemon keeps using its own version while a new one is installed.
self=$(readlink -f -- "$0") || exit 1
tree=${self%/bin/snapshotter}

# Certificates are the node's. The OpenSSL of this tree looks for them where the distribution it was built on has them;
# others have them elsewhere. What an admin has set counts, and what programs started from here find is the same.
if [ -z "${SSL_CERT_FILE-}${SSL_CERT_DIR-}" ] && [ ! -e "@CAFILE@" ] && [ ! -e "@CAPATH@" ]; then
    for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem \
        /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem /etc/ssl/cert.pem; do
        if [ -r "$bundle" ]; then
            SSL_CERT_FILE=$bundle
            export SSL_CERT_FILE
            break
        fi
    done
fi

exec "$tree/bin/python3" -I -S -m snapshotter "$@"
