#!/usr/bin/env bash
# Starts and stops Redis and Postgres on free loopback ports, in a directory of their own. No
# installed service is started or touched.
#
#   tests/services/private.sh start DIR    prints and writes DIR/env, to be sourced
#   tests/services/private.sh stop DIR
set -euo pipefail

command=${1:?start or stop}
dir=${2:?directory}

free_port() {
    local port
    for _ in $(seq 50); do
        port=$((20000 + RANDOM % 20000))
        # Nobody answers there: free, or as good as.
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    echo "no free port" >&2
    return 1
}

# Postgres refuses to run as root.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

postgres_bin() {
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin -type d | sort -V | tail -n 1
}

case $command in
start)
    mkdir -p "$dir/redis" "$dir/postgres"
    dir=$(cd "$dir" && pwd)
    chmod 755 "$dir"
    cd "$dir"
    redis_port=$(free_port)
    redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly yes --appendfsync everysec \
        --maxmemory-policy noeviction --daemonize yes --dir "$dir/redis" --pidfile "$dir/redis/pid" \
        --logfile "$dir/redis/log" >/dev/null
    if [ "$(id -u)" = 0 ]; then chown postgres "$dir/postgres"; fi
    as_postgres "$(postgres_bin)/initdb" -D "$dir/postgres/data" -U vidgen --auth=trust --no-sync -E UTF8 \
        --locale=C.UTF-8 >"$dir/initdb.log" 2>&1
    postgres_port=$(free_port)
    as_postgres "$(postgres_bin)/pg_ctl" -D "$dir/postgres/data" -w -t 30 -l "$dir/postgres/log" start >/dev/null \
        -o "-p $postgres_port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$dir/postgres -c max_connections=200"
    for _ in $(seq 100); do
        if redis-cli -p "$redis_port" ping >/dev/null 2>&1; then break; fi
        sleep 0.05
    done
    redis-cli -p "$redis_port" ping >/dev/null
    {
        echo "export VIDGEN_TEST_REDIS_URL=redis://127.0.0.1:$redis_port/0"
        echo "export VIDGEN_TEST_POSTGRES_URL=postgres://vidgen@127.0.0.1:$postgres_port/postgres"
    } | tee "$dir/env"
    ;;
stop)
    [ -d "$dir" ] || exit 0
    dir=$(cd "$dir" && pwd)
    cd "$dir"
    if [ -s redis/pid ]; then kill "$(cat redis/pid)" 2>/dev/null || true; fi
    if [ -d postgres/data ]; then
        as_postgres "$(postgres_bin)/pg_ctl" -D "$dir/postgres/data" -m immediate stop >/dev/null 2>&1 || true
    fi
    ;;
*)
    echo "usage: private.sh start|stop DIR" >&2
    exit 2
    ;;
esac
