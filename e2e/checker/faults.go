package checker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"accessbroker.internal/e2e/cluster"
)

// A fault strikes a run and ends again. It returns when everything that it stopped may work
// again. Its error means that the run cannot go on, which is a finding.
type fault struct {
	name   string
	suits  func(*Config) bool // nil: every run
	weight int
	strike func(ctx context.Context, w *world, r *rand.Rand) (target string, err error)
}

func onPostgres(c *Config) bool { return c.Postgres }
func onSQLite(c *Config) bool   { return !c.Postgres }

// processFaults stop processes. They strike one after the other.
var processFaults = []fault{
	{"kill -9", nil, 6, killed},
	{"SIGTERM", nil, 2, stopped},
	{"SIGSTOP", nil, 4, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		b := pick(w, r)
		err := b.Pause()
		pause(ctx, r, 4*time.Second)
		return b.Name, errors.Join(err, b.Resume())
	}},
	{"kill -9 while suspended", nil, 2, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		b := mortal(w, r)
		err := b.Pause()
		pause(ctx, r, time.Second)
		b.Kill()
		return b.Name, errors.Join(err, w.restart(ctx, b))
	}},
	{"full disk", onSQLite, 2, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		b := mortal(w, r)
		pid := b.Process().Cmd.Process.Pid
		err := limitFiles(pid, 1)
		pause(ctx, r, 2*time.Second)
		if r.IntN(2) == 0 {
			b.Kill()
			return b.Name, errors.Join(err, w.restart(ctx, b))
		}
		return b.Name, errors.Join(err, limitFiles(pid, unix.RLIM_INFINITY))
	}},
	{"database restarts", onPostgres, 2, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		return "database", w.Postgres.Restart(context.WithoutCancel(ctx))
	}},
	{"database crashes", onPostgres, 2, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		w.Postgres.Crash()
		return "database", startDatabase(ctx, w.Postgres)
	}},
	{"database is suspended", onPostgres, 3, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		w.Postgres.Pause()
		pause(ctx, r, 6*time.Second)
		w.Postgres.Resume()
		return "database", nil
	}},
	{"clocks differ a little", onPostgres, 1, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		err := w.setClock(ctx, time.Duration(1-2*r.IntN(2))*time.Second)
		pause(ctx, r, 3*time.Second)
		return "database", errors.Join(err, w.setClock(ctx, 0))
	}},
	{"clocks differ", onPostgres, 2, clocksDiffer},
	{"failover", func(c *Config) bool { return c.Standby }, 1, failedOver},
}

// networkFaults disturb connections. They strike one after the other, and at the same time
// as the processFaults.
var networkFaults = []fault{
	{"clients are cut off", nil, 2, disturb((*world).clientSide, func(r *cluster.Relay, _ *rand.Rand) { r.Cut() })},
	{"clients lose their connections", nil, 3, disturb((*world).clientSide, func(r *cluster.Relay, _ *rand.Rand) { r.Reset() })},
	{"answers to clients are held", nil, 2, disturb((*world).clientSide, func(r *cluster.Relay, _ *rand.Rand) { r.Blackhole(cluster.Down) })},
	{"clients are slow", nil, 1, disturb((*world).clientSide, slow)},
	{"database is cut off", onPostgres, 3, disturb((*world).databaseSide, func(r *cluster.Relay, _ *rand.Rand) { r.Cut() })},
	{"connections to the database are lost", onPostgres, 6, disturb((*world).databaseSide, func(r *cluster.Relay, _ *rand.Rand) { r.Reset() })},
	{"answers of the database are held", onPostgres, 3, disturb((*world).databaseSide, func(r *cluster.Relay, _ *rand.Rand) { r.Blackhole(cluster.Down) })},
	{"the database gets nothing", onPostgres, 2, disturb((*world).databaseSide, func(r *cluster.Relay, _ *rand.Rand) { r.Blackhole(cluster.Up) })},
	{"database is slow", onPostgres, 3, disturb((*world).databaseSide, slow)},
	{"the outcome of a commit is lost", onPostgres, 3, func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		name, relay := w.databaseSide(r)
		trap := relay.SetTrap("commit", "COMMIT")
		select {
		case <-trap.Sprung():
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
		relay.Heal()
		return name, nil
	}},
}

func slow(r *cluster.Relay, random *rand.Rand) {
	r.Delay(cluster.Up, time.Duration(random.IntN(200))*time.Millisecond)
	r.Delay(cluster.Down, time.Duration(random.IntN(200))*time.Millisecond)
}

// disturb returns a fault of one relay.
func disturb(side func(*world, *rand.Rand) (string, *cluster.Relay), do func(*cluster.Relay, *rand.Rand)) func(context.Context, *world, *rand.Rand) (string, error) {
	return func(ctx context.Context, w *world, r *rand.Rand) (string, error) {
		name, relay := side(w, r)
		do(relay, r)
		pause(ctx, r, 3*time.Second)
		relay.Heal()
		return name, nil
	}
}

func (w *world) clientSide(r *rand.Rand) (string, *cluster.Relay) {
	i := r.IntN(len(w.relays))
	return "clients of " + w.Replicas[i].Name, w.relays[i]
}

func (w *world) databaseSide(r *rand.Rand) (string, *cluster.Relay) {
	i := r.IntN(len(w.Relays))
	return w.Replicas[i].Name + " to the database", w.Relays[i]
}

// pause lets the clients run into the fault. No judgement depends on its length.
func pause(ctx context.Context, r *rand.Rand, most time.Duration) {
	select {
	case <-time.After(time.Duration(r.Int64N(int64(most)))):
	case <-ctx.Done():
	}
}

func pick(w *world, r *rand.Rand) *cluster.Broker { return w.Replicas[r.IntN(len(w.Replicas))] }

// mortal returns a replica whose process may end.
func mortal(w *world, r *rand.Rand) *cluster.Broker {
	return w.Replicas[w.immortal+r.IntN(len(w.Replicas)-w.immortal)]
}

func killed(ctx context.Context, w *world, r *rand.Rand) (string, error) {
	b := mortal(w, r)
	b.Kill()
	pause(ctx, r, 500*time.Millisecond)
	return b.Name, w.restart(ctx, b)
}

func stopped(ctx context.Context, w *world, r *rand.Rand) (string, error) {
	b := mortal(w, r)
	err := b.Stop()
	if b.Process().Cmd.ProcessState.ExitCode() == exitUnavailable {
		err = nil // another fault kept it from publishing its last checkpoint
	}
	return b.Name, errors.Join(err, w.restart(ctx, b))
}

// startDatabase starts a server that has ended, until it answers. The memory of a server that
// crashed may outlive it for a moment, in which it does not start.
func startDatabase(ctx context.Context, p *cluster.Postgres) error {
	ctx = context.WithoutCancel(ctx)
	return cluster.Await(ctx, "the database", time.Minute, func() error {
		select {
		case <-p.Done():
			if err := p.Launch(); err != nil {
				return err
			}
		default:
		}
		_, err := p.Exec(ctx, "postgres", "SELECT 1")
		return err
	})
}

// heal ends every fault: the replicas reach a database that works.
func (w *world) heal(ctx context.Context) error {
	for _, r := range slices.Concat(w.relays, w.Relays) {
		r.Heal()
	}
	for _, b := range w.Replicas {
		_ = b.Resume() // an error means that it has ended
	}
	p := w.primary()
	if p == nil {
		return nil
	}
	p.Resume()
	select {
	case <-p.Done():
		return startDatabase(ctx, p)
	default:
		return nil
	}
}

// restart starts a replica whose process has ended, and waits until it is ready. The replica
// keeps its checkpoint file, whose content is one that the log must continue.
func (w *world) restart(ctx context.Context, b *cluster.Broker) error {
	w.keepCheckpoint(b)
	if err := b.Launch(); err != nil {
		return err
	}
	return cluster.Await(context.WithoutCancel(ctx), b.Name, w.recovery, func() error {
		if !b.Process().Ended() {
			return ready(ctx, b)
		}
		// Another fault may keep the replica from its database. A supervisor starts it again.
		return errors.Join(endedWith(b), b.Launch())
	})
}

// exitUnavailable is the exit code of a broker that could not reach its database.
const exitUnavailable = 5

func endedWith(b *cluster.Broker) error {
	return fmt.Errorf("%s ended with %s:\n%s", b.Name, b.Process().Cmd.ProcessState, tail(b.Output()))
}

// ready returns nil if a replica is ready.
func ready(ctx context.Context, b *cluster.Broker) error {
	r, err := b.Ready(context.WithoutCancel(ctx))
	if err == nil && !r.Ready {
		err = fmt.Errorf("not ready: %v", r.NotReady)
	}
	return err
}

// failedOver crashes the primary, promotes its synchronous standby, and makes a new standby.
func failedOver(ctx context.Context, w *world, _ *rand.Rand) (string, error) {
	ctx = context.WithoutCancel(ctx)
	w.Postgres.Crash()
	next := w.Standby
	if err := next.Promote(ctx); err != nil {
		return "database", err
	}
	for _, r := range w.Relays {
		r.SetTarget(next.Address())
		r.Reset()
	}
	w.mu.Lock()
	w.Postgres, w.failovers = next, w.failovers+1
	w.mu.Unlock()
	var err error
	if w.Standby, err = next.NewStandby(ctx, w.Dir, fmt.Sprintf("standby-%d", w.failovers)); err != nil {
		return "database", err
	}
	return "database", w.synchronize(ctx)
}

// primary returns the server that accepts writes.
func (w *world) primary() *cluster.Postgres {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Postgres
}

// synchronize makes the primary wait for its standby at each commit, so that a failover
// loses nothing.
func (w *world) synchronize(ctx context.Context) error {
	for _, statement := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if _, err := w.Postgres.Exec(ctx, "postgres", statement); err != nil {
			return err
		}
	}
	return w.Postgres.AwaitStandby(ctx, w.Standby)
}

// limitFiles bounds the size of the files that a process may write.
func limitFiles(pid int, size uint64) error {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &old); err != nil {
		return fmt.Errorf("limiting the files of %d: %w", pid, err)
	}
	return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: old.Max}, nil)
}

// strike strikes with faults in random order until ctx ends. await makes it wait after each
// one until the replicas have recovered.
func (w *world) strike(ctx context.Context, c *Config, h *History, list []fault, await bool, r *rand.Rand) error {
	var suitable []fault
	for _, f := range list {
		if (f.suits == nil || f.suits(c)) && (c.Only == nil || c.Only[f.name]) {
			for range f.weight {
				suitable = append(suitable, f)
			}
		}
	}
	if len(suitable) == 0 {
		return nil
	}
	for {
		pause(ctx, r, c.Calm)
		if ctx.Err() != nil {
			return nil
		}
		f := suitable[r.IntN(len(suitable))]
		start := time.Now().UTC()
		target, err := f.strike(ctx, w, r)
		if err == nil && await {
			err = w.awaitReady(ctx)
		}
		h.AddFault(Fault{Name: f.name, Target: target, Start: start, End: time.Now().UTC()})
		if err != nil {
			return fmt.Errorf("after %q of %s: %w", f.name, target, err)
		}
	}
}

// awaitReady waits until every replica recovers by itself. Only the caller restarts replicas.
func (w *world) awaitReady(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	for _, b := range w.Replicas {
		var ended error
		err := cluster.Await(ctx, b.Name, w.recovery, func() error {
			if b.Process().Ended() {
				ended = endedWith(b)
				return nil
			}
			return ready(ctx, b)
		})
		if err = errors.Join(ended, err); err != nil {
			return err
		}
	}
	return nil
}

// tail returns the end of an output.
func tail(text string) string { return text[max(0, len(text)-2000):] }
