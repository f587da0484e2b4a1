// Checker runs the broker's checker (package e2e/checker), or judges a run again. Run it
// from the e2e folder:
//
//	go run ./cmd/checker -replicas 3 -length 5m
//	go run ./cmd/checker -seed 4711 -length 5m
//	go run ./cmd/checker -judge DIR
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"accessbroker.internal/e2e/checker"
	"accessbroker.internal/e2e/cluster"
)

// errFound means that the run violates a property.
var errFound = errors.New("the checker found violations")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "checker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c := checker.Config{}
	flag.Uint64Var(&c.Seed, "seed", rand.Uint64(), "draw calls and faults from this `number`")
	flag.DurationVar(&c.Length, "length", 2*time.Minute, "load the replicas for this `time`")
	flag.IntVar(&c.Clients, "clients", 12, "the `number` of clients")
	flag.IntVar(&c.Replicas, "replicas", 3, "the `number` of replicas; one runs on SQLite, more on PostgreSQL")
	flag.StringVar(&c.Binary, "broker", "", "the broker's `path`; it is built by default")
	flag.DurationVar(&c.Pace, "pace", 0, "the longest pause of a client between two calls, as a `time`")
	again := flag.String("judge", "", "judge the run whose history.jsonl and log.jsonl are in this `folder`")
	flag.Parse()
	if *again != "" {
		findings, err := checker.JudgeAgain(ctx, *again)
		return errors.Join(err, show(findings))
	}
	dir, err := os.MkdirTemp("", "checker-run-")
	if err != nil {
		return err
	}
	if c.Dir, c.Postgres, c.Standby = dir, c.Replicas > 1, c.Replicas > 1; c.Binary == "" {
		c.Binary = filepath.Join(dir, "broker")
		if err := cluster.Build(ctx, c.Binary); err != nil {
			return err
		}
	}
	fmt.Printf("seed %d; the history and the log are in %s\n", c.Seed, dir)
	result, err := checker.Run(ctx, c)
	if err != nil {
		return err
	}
	fmt.Println(result.Summary())
	return show(result.Findings)
}

func show(findings []checker.Finding) error {
	for _, f := range findings {
		fmt.Println(f)
	}
	if len(findings) > 0 {
		return errFound
	}
	return nil
}
