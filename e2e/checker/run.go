package checker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/audit"
	"accessbroker.internal/e2e/cluster"
)

// Config describes a run.
type Config struct {
	Seed     uint64
	Length   time.Duration // of the load
	Clients  int
	Replicas int // more than one needs Postgres
	Postgres bool
	Standby  bool // a synchronous standby, to which the run fails over
	Workload Workload

	Pace     time.Duration                               // the longest pause of a client between two deeds; zero: none
	Calm     time.Duration                               // the longest pause between two faults; zero: 2s
	Only     map[string]bool                             // names of the faults that may strike; nil: all
	Recovery time.Duration                               // how long replicas may take until they are ready after a fault; zero: 1m
	Spare    bool                                        // the process of the first replica never ends
	Binary   string                                      // of the broker
	Reader   string                                      // of the broker that exports the log; empty: Binary
	Dir      string                                      // for the history and the log
	Observe  func(ctx context.Context, w *Watched) error // runs as long as the load; nil: nothing
	Progress func(format string, args ...any)
}

// A Watched is what Observe may look at.
type Watched struct {
	Replicas []*cluster.Broker
	Postgres func() *cluster.Postgres // the primary; nil: the store is SQLite
}

// A Result is what a run led to.
type Result struct {
	History  *History
	Log      *Log
	Findings []Finding
}

// Summary counts the operations and faults.
func (r *Result) Summary() string {
	counts := map[Outcome]int{}
	for i := range r.History.Operations {
		counts[r.History.Operations[i].Outcome]++
	}
	faults := map[string]int{}
	for _, f := range r.History.Faults {
		faults[f.Name]++
	}
	return fmt.Sprintf("%d operations ok, %d failed, %d unknown; %d records; %d credentials upstream; faults: %v", counts[OK], counts[Fail], counts[Unknown], len(r.Log.Records), len(r.History.Upstream), faults)
}

// recovers is the name of the judge that needs no log.
const recovers = "replicas recover by themselves"

// ErrNotStarted means that a replica did not start.
var ErrNotStarted = errors.New("a replica did not start")

// Run starts a broker, loads it while faults strike, and judges. Its error means that the
// checker failed, not the broker.
func Run(ctx context.Context, c Config) (_ *Result, err error) {
	if c.Progress == nil {
		c.Progress = func(string, ...any) {}
	}
	if c.Workload == "" {
		c.Workload = Mixed
	}
	if c.Calm == 0 {
		c.Calm = 2 * time.Second
	}
	if c.Recovery == 0 {
		c.Recovery = time.Minute
	}
	file, err := os.Create(filepath.Join(c.Dir, historyFile))
	if err != nil {
		return nil, fmt.Errorf("creating the history: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	r := &Result{History: NewHistory(file, c.Seed)}
	w, err := newWorld(ctx, c, r.History)
	if err != nil {
		return nil, err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, w.close())
		}
	}()
	shared := &pool{}
	if err := r.load(ctx, c, w, shared); err != nil {
		r.find(recovers, err)
		r.History.Settle(w.upstream.made(), time.Now().UTC())
		if err := w.heal(ctx); err != nil {
			return nil, fmt.Errorf("%w; found before: %v", err, r.Findings)
		}
	} else if err := r.settle(ctx, c, w, shared); err != nil {
		r.find(recovers, err)
	}
	if err := w.stopBrokers(); err != nil {
		r.find("replicas stop in an orderly way", err)
	}
	if err := r.judge(ctx, c, w); err != nil {
		return nil, fmt.Errorf("%w; found before: %v", err, r.Findings)
	}
	closed = true
	return r, errors.Join(w.close(), r.History.Err())
}

func (r *Result) find(judge string, err error) {
	r.Findings = append(r.Findings, Finding{judge, err.Error()})
}

// load lets the clients call while faults strike.
func (r *Result) load(ctx context.Context, c Config, w *world, shared *pool) error {
	ctx, cancel := context.WithTimeout(ctx, c.Length)
	defer cancel()
	began := time.Now()
	var clients sync.WaitGroup
	for n := range c.Clients {
		client := &client{
			name: fmt.Sprintf("c%d", n), random: rand.New(rand.NewPCG(c.Seed, uint64(100+n))),
			world: w, pool: shared, history: r.History, began: began, pace: c.Pace,
		}
		clients.Go(func() { client.run(ctx, c.Workload) })
	}
	strikes, striking := errgroup.WithContext(ctx)
	strikes.Go(func() error {
		return w.strike(striking, &c, r.History, processFaults, true, rand.New(rand.NewPCG(c.Seed, 10)))
	})
	strikes.Go(func() error {
		return w.strike(striking, &c, r.History, networkFaults, false, rand.New(rand.NewPCG(c.Seed, 11)))
	})
	if c.Observe != nil {
		watched := &Watched{Replicas: w.Replicas}
		if c.Postgres {
			watched.Postgres = w.primary
		}
		strikes.Go(func() error { return c.Observe(striking, watched) })
	}
	err := strikes.Wait()
	if err == nil {
		<-ctx.Done()
	}
	cancel()
	clients.Wait()
	return err
}

// settleWithin is how long a run waits for the end of what the replicas still do. It exceeds
// ownedWithin, so that a lease without an owner is found.
const settleWithin = 45 * time.Second

// settle waits until the replicas have recovered and have finished what they began, and lets
// a client look at everything once more at each replica.
func (r *Result) settle(ctx context.Context, c Config, w *world, shared *pool) error {
	w.upstream.settle()
	if err := errors.Join(w.heal(ctx), w.awaitReady(ctx)); err != nil {
		return err
	}
	last := &client{name: "last", random: rand.New(rand.NewPCG(c.Seed, 99)), world: w, pool: shared, history: r.History, began: time.Now()}
	last.lookAtAll(ctx)
	for end := time.Now().Add(settleWithin); time.Now().Before(end); {
		log, err := w.export(ctx, c, nil)
		if err != nil {
			return err
		}
		if !unfinished(log, w.upstream.made()) {
			break
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.History.Settle(w.upstream.made(), time.Now().UTC())
	return nil
}

// unfinished reports whether a lease is still being issued, or works upstream although its
// revocation is recorded.
func unfinished(log *Log, made []Upstream) bool {
	issuing, revoking := map[string]bool{}, map[string]bool{}
	for i := range log.Records {
		l := log.Records[i].Lease
		switch log.Records[i].Kind {
		case audit.LeaseOpened:
			issuing[l.ID] = true
		case audit.LeaseRevoking:
			delete(issuing, l.ID)
			revoking[l.ID] = true
		case audit.LeaseIssued, audit.LeaseFailed, audit.LeaseRevoked, audit.LeaseAbandoned:
			delete(issuing, l.ID)
		}
	}
	works := func(u Upstream) bool { return revoking[u.Lease] && u.Ended.IsZero() }
	return len(issuing) > 0 || slices.ContainsFunc(made, works)
}

// lookAtAll reads every request and inspects every token, at each replica.
func (c *client) lookAtAll(ctx context.Context) {
	credentials, requests := c.pool.all()
	for replica := range c.world.endpoints {
		for i := range credentials {
			if credentials[i].entitlement != orders {
				c.inspectAt(ctx, replica, &credentials[i])
			}
		}
		for i := range requests {
			c.readAt(ctx, replica, &requests[i])
		}
		c.send(ctx, c.operationAt(replica, Checkpoint, Args{}), request{method: "GET", path: "/log/checkpoint", into: readNote})
	}
}

// judge reads the log with another process and judges.
func (r *Result) judge(ctx context.Context, c Config, w *world) (err error) {
	for _, b := range w.Replicas {
		w.keepCheckpoint(b)
	}
	if r.Log, err = w.export(ctx, c, append(r.History.notes(), w.notes...)); err != nil {
		return err
	}
	r.Findings = append(r.Findings, Judge(&Evidence{History: r.History, Log: r.Log, Rules: rules, Skew: skew})...)
	return nil
}

// notes returns the signed checkpoints that clients saw.
func (h *History) notes() (notes []string) {
	for i := range h.Operations {
		if note := h.Operations[i].Answer.Note; note != "" {
			notes = append(notes, note)
		}
	}
	return notes
}

// JudgeAgain judges a run by the files that it left in a folder.
func JudgeAgain(ctx context.Context, dir string) ([]Finding, error) {
	file, err := os.Open(filepath.Join(dir, historyFile))
	if err != nil {
		return nil, fmt.Errorf("reading the history: %w", err)
	}
	history, err := ReadHistory(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	log, err := ReadLog(ctx, filepath.Join(dir, logFile), history.notes())
	if err != nil {
		return nil, err
	}
	return Judge(&Evidence{History: history, Log: log, Rules: rules, Skew: skew}), nil
}

// The files of a run.
const (
	historyFile = "history.jsonl"
	logFile     = "log.jsonl"
)

// skew is by how much clocks may differ: records have milliseconds, histories nanoseconds.
const skew = 50 * time.Millisecond

// databaseEnv has the URL of the database, whose password no command line may show.
const databaseEnv = "CHECKER_DATABASE"

// export returns the log, as another process reads it from the database.
func (w *world) export(ctx context.Context, c Config, notes []string) (*Log, error) {
	binary := c.Reader
	if binary == "" {
		binary = c.Binary
	}
	file := filepath.Join(c.Dir, logFile)
	out, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("exporting the log: %w", err)
	}
	reader := cluster.Broker{Binary: binary, Env: []string{databaseEnv + "=" + w.databaseURL()}}
	text, err := reader.CLI(ctx, "audit", "export", "env:"+databaseEnv)
	if err == nil {
		_, err = io.WriteString(out, text)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return nil, fmt.Errorf("exporting the log: %w", err)
	}
	return ReadLog(ctx, file, notes)
}

// databaseURL returns the URL of the database, past all relays.
func (w *world) databaseURL() string {
	if w.primary() == nil {
		return w.Dev.Database()
	}
	return w.primary().DSN(cluster.Owner, cluster.Database)
}

// keepCheckpoint keeps the content of a replica's checkpoint file.
func (w *world) keepCheckpoint(b *cluster.Broker) {
	if text, err := os.ReadFile(b.CheckpointFile()); err == nil && len(text) > 0 {
		w.notes = append(w.notes, string(text))
	}
}

// stopBrokers stops all replicas, which must end in an orderly way.
func (w *world) stopBrokers() error {
	var all errgroup.Group
	for _, b := range w.Replicas {
		if !b.Process().Ended() {
			all.Go(b.Stop)
		}
	}
	return all.Wait()
}
