// Command broker is the access broker: the server, a whole world of it on one
// machine (dev), and the client for agents, services, operators and auditors.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends us, whatever we are at
	// Who reads us may be gone, and what we had for them is to be given back: a
	// write fails then, and does not end us. (What we start is not kept from it.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(ctx, os.Args[1:], terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv}))
}
