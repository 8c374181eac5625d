#!/usr/bin/env bash
# The local cluster in the background: dev.sh up DATA API COMMAND..., health DATA, down DATA.
set -euo pipefail

nodes() { # the HTTP addresses in dev.json, one a line
	sed -n 's/.*"http": "\(.*\)".*/\1/p' "$1/dev.json"
}

up() {
	local data=$1 api=$2
	shift 2
	mkdir -p "$data"
	if [ -f "$data/dev.pid" ] && kill -0 "$(cat "$data/dev.pid")" 2>/dev/null; then
		echo "already up (pid $(cat "$data/dev.pid")); make down stops it" >&2
		exit 1
	fi
	setsid "$@" >"$data/dev.log" 2>&1 </dev/null &
	local pid=$!
	echo "$pid" >"$data/dev.pid"
	for _ in $(seq 900); do
		# "stop" ends what dev says once every node is ready.
		if grep -q '^stop' "$data/dev.log" && curl -fs "$api/readyz" >/dev/null 2>&1; then
			sed -n '1,/^stop/p' "$data/dev.log"
			echo "up (pid $pid); make status, logs, health, smoke-test, down"
			return
		fi
		if ! kill -0 "$pid" 2>/dev/null; then
			tail -n 5 "$data/dev.log" >&2
			rm -f "$data/dev.pid"
			exit 1
		fi
		sleep 0.2
	done
	echo "not ready after 3 min, see $data/dev.log" >&2
	exit 1
}

health() {
	local bad=0 addr
	[ -f "$1/dev.json" ] || { echo "no cluster in $1: make up starts one" >&2; exit 1; }
	for addr in $(nodes "$1"); do
		if curl -fs "http://$addr/healthz" >/dev/null && curl -fs "http://$addr/readyz" >/dev/null; then
			echo "$addr healthy, ready"
		else
			echo "$addr NOT ready: $(curl -s "http://$addr/readyz" || echo no answer)"
			bad=1
		fi
	done
	return $bad
}

down() {
	local pid
	[ -f "$1/dev.pid" ] || { echo "not up: no $1/dev.pid" >&2; exit 1; }
	pid=$(cat "$1/dev.pid")
	kill -INT "$pid" 2>/dev/null || { rm -f "$1/dev.pid"; echo "it was not running any more"; return; }
	for _ in $(seq 900); do
		kill -0 "$pid" 2>/dev/null || { rm -f "$1/dev.pid"; tail -n 1 "$1/dev.log"; return; }
		sleep 0.2
	done
	echo "pid $pid has not stopped after 60 s, see $1/dev.log" >&2
	exit 1
}

command=$1
shift
case $command in
up | health | down) "$command" "$@" ;;
*) echo "usage: dev.sh up|health|down" >&2; exit 2 ;;
esac
