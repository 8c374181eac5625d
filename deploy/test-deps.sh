#!/usr/bin/env bash
# Installs what the tests use beside Go: foreign MQTT clients, PostgreSQL, xz,
# and the npm packages of the WebAssembly TimescaleDB and of MQTT.js. What is
# there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

want=()
command -v mosquitto_pub >/dev/null || want+=(mosquitto-clients)
/usr/bin/python3 -c 'import paho.mqtt.client' 2>/dev/null || want+=(python3-paho-mqtt)
command -v xz >/dev/null || want+=(xz-utils)
command -v curl >/dev/null || want+=(curl)
command -v ip >/dev/null || want+=(iproute2)
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || want+=(postgresql)
if [ ${#want[@]} -gt 0 ]; then
	as=()
	[ "$(id -u)" = 0 ] || as=(sudo)
	command -v apt-get >/dev/null || { echo "install these and run again: ${want[*]}" >&2; exit 1; }
	echo "installing ${want[*]}"
	"${as[@]}" apt-get update -qq
	DEBIAN_FRONTEND=noninteractive "${as[@]}" apt-get install -y -qq --no-install-recommends "${want[@]}" >/dev/null
fi

for dir in store/postgres/testdata/tsdb e2e/testdata/clients; do
	[ ! -d "$dir/node_modules" ] || continue
	command -v npm >/dev/null || { echo "npm is missing: install Node.js 20 or later" >&2; exit 1; }
	npm ci --prefix "$dir" --no-audit --no-fund --silent
done
