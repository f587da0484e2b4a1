// Servers builds and installs the servers of the end-to-end tests. It does nothing
// if everything is installed. Run it from the e2e folder, or as "make servers".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"accessbroker.internal/e2e/servers"
)

var errTooSlow = errors.New("the time limit is over (raise it with -limit, or make servers SERVERS_LIMIT=2h)")

func main() {
	limit := flag.Duration("limit", time.Hour, "stop after this `time`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, errTooSlow)
	err := servers.Ensure(ctx, os.Stdout)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "servers:", err)
		os.Exit(1)
	}
}
