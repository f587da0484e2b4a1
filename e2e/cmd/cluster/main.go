// Cluster runs three brokers behind a load balancer, on a PostgreSQL with a standby, on
// loopback. It is for trying out what happens when one of them ends. Run it as
// "make cluster".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

const usage = `usage: cluster run [-broker FILE]
       cluster load [-clients N] [-for TIME] FOLDER`

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.Usage = func() { _, _ = fmt.Fprintln(flags.Output(), usage) }
	switch args[0] {
	case "run":
		binary := flags.String("broker", "", "")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return runCluster(ctx, *binary, out)
	case "load":
		l := load{out: out}
		flags.IntVar(&l.clients, "clients", 64, "")
		flags.DurationVar(&l.lasts, "for", 0, "")
		if err := flags.Parse(args[1:]); err != nil || flags.NArg() != 1 || l.clients < 1 {
			return errors.Join(err, errors.New(usage))
		}
		return l.run(ctx, flags.Arg(0))
	default:
		return errors.New(usage)
	}
}
