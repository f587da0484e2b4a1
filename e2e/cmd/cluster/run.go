package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/template"
	"time"

	"accessbroker.internal/e2e/cluster"
	"accessbroker.internal/e2e/servers"
)

// checkInstalled returns an error that names every package that is missing.
func checkInstalled() error {
	var errs []error
	for _, command := range []string{"initdb", "pgbouncer", "haproxy"} {
		if _, err := servers.Command(command); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// A demo is a running cluster.
type demo struct {
	*cluster.World
	mu  sync.Mutex
	out io.Writer
}

// say prints a line for the person who watches.
func (d *demo) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = fmt.Fprintf(d.out, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func runCluster(ctx context.Context, binary string, out io.Writer) (err error) {
	if err := checkInstalled(); err != nil {
		return err
	}
	d := &demo{out: out}
	d.say("Starting PostgreSQL, a standby, PgBouncer, three brokers and HAProxy.")
	d.World, err = cluster.Start(ctx, cluster.Options{
		Binary: binary, Replicas: 3, Balancer: true, Postgres: &cluster.PostgresOptions{Name: "primary"}, Standby: true, PgBouncer: true,
		// One replica connects through the pooler. The others know both servers, and
		// connect to the one that accepts writes.
		StoreURL: func(w *cluster.World, replica int) string {
			if replica == 0 {
				return cluster.DSN(cluster.Role, cluster.Database, w.Bouncer.Address())
			}
			return cluster.DSN(cluster.Role, cluster.Database, w.Postgres.Address(), w.Standby.Address())
		},
	})
	if ctx.Err() != nil && d.World == nil {
		d.say("Stopped before everything had started.")
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.explain(); err != nil {
		return errors.Join(err, d.Close())
	}
	d.watch(ctx)
	d.say("Stopping.")
	if err := d.Close(); err != nil {
		return err
	}
	d.say("Everything has ended, and the files are removed.")
	return nil
}

// A description is the file with which "cluster load" finds the cluster.
type description struct{ URL, CA, Bundle string }

const descriptionFile = "cluster.json"

// explain writes the files that people use, and prints what runs where.
func (d *demo) explain() error {
	text, err := json.Marshal(description{d.URL(), d.Dev.Path("ca"), d.Dev.Bundle()})
	if err != nil {
		return err
	}
	if err := d.Dev.Replace(descriptionFile, text); err != nil {
		return err
	}
	link := d.Dev.Path("bin")
	binary, err := filepath.Abs(d.Replicas[0].Binary)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(link, 0o700), os.Symlink(binary, filepath.Join(link, "broker"))); err != nil {
		return err
	}
	env := "export PATH='" + link + "':$PATH"
	for _, variable := range d.Environment("agent") {
		env += " " + variable
	}
	env += " BROKER_ADMIN_SOCKET=" + d.Replicas[0].AdminSocket()
	env += "\nunset BROKER_CERT BROKER_KEY BROKER_TOKEN_FILE BROKER_TOKEN_FROM BROKER_TOKEN_AUDIENCE BROKER_ID_TOKEN\n"
	if err := d.Dev.Replace("env", []byte(env)); err != nil {
		return err
	}
	own, err := os.Executable()
	if err != nil {
		return err
	}
	if wd, err := os.Getwd(); err == nil {
		if relative, err := filepath.Rel(wd, own); err == nil && !strings.HasPrefix(relative, "../..") {
			own = "./" + relative
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return page.Execute(d.out, map[string]any{"D": d, "Load": own + " load " + d.Dir})
}

var page = template.Must(template.New("").Parse(`
Access Broker with three replicas, on this machine. It is not for production.

  for callers   {{.D.URL}}       HAProxy
  pages         {{.D.URL}}/ui/   log in as Ana, Ben, Dan or Kim;
                the browser warns, because the certificate is this cluster's own

             process  API                      metrics, /healthz and /readyz
{{range .D.Replicas}}  {{printf "%-9s  %-7d  https://%-15s  http://%s/metrics" .Name .Process.Cmd.Process.Pid .Address .Metrics}}
{{end}}
{{with .D.Postgres}}  {{printf "primary    %-7d  PostgreSQL at %s" .PID .Address}}
{{end}}{{with .D.Standby}}  {{printf "standby    %-7d  PostgreSQL at %s, a streaming replica" .PID .Address}}
{{end}}{{with .D.Bouncer}}  {{printf "PgBouncer  %-7d  at %s, between broker-1 and the primary" .Process.Cmd.Process.Pid .Address}}
{{end}}
  operator's files, logs and keys: {{.D.Dir}}

The first token, and the state of the replicas, in another terminal:

  . {{.D.Dir}}/env
  broker request tickets-api --scope tickets:read --why "first try"
  broker replicas

Load, which prints tokens and errors per second:

  {{.Load}}

Break something, and look at the load and at the lines below:

  kill -9 {{printf "%-8d" (index .D.Replicas 1).Process.Cmd.Process.Pid}}  a replica: HAProxy leaves it out, and it is started again
  kill -INT {{printf "%-6d" .D.Postgres.PID}}  the primary: the standby is promoted, and PgBouncer follows

Ctrl-C ends everything.

`))

// watch says what ends, starts replicas again, and promotes the standby if the primary
// ends, as a manager of PostgreSQL's failover does. It returns when ctx ends.
func (d *demo) watch(ctx context.Context) {
	var all sync.WaitGroup
	for _, b := range d.Replicas {
		all.Go(func() { d.watchReplica(ctx, b) })
	}
	all.Go(func() { d.watchPrimary(ctx) })
	all.Go(func() { d.watchPooler(ctx) })
	all.Wait()
}

func (d *demo) watchReplica(ctx context.Context, b *cluster.Broker) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.Process().Done:
		}
		d.say("%s ended (%s). It starts again in 5 seconds.", b.Name, b.Process().Cmd.ProcessState)
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Second):
		}
		if err := b.Start(ctx); err != nil && ctx.Err() == nil {
			d.say("%s is not ready: its log is %s", b.Name, b.LogFile())
		} else if err == nil {
			d.say("%s is ready again, as process %d.", b.Name, b.Process().Cmd.Process.Pid)
		}
	}
}

// watchPooler starts PgBouncer again if it ends.
func (d *demo) watchPooler(ctx context.Context) {
	for {
		p := d.Bouncer.Process()
		select {
		case <-ctx.Done():
			return
		case <-p.Done:
		}
		d.say("PgBouncer ended (%s). It starts again.", p.Cmd.ProcessState)
		if err := d.Bouncer.Start(ctx); err != nil {
			d.say("PgBouncer did not start: %v", err)
			return
		}
	}
}

func (d *demo) watchPrimary(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-d.Postgres.Done():
	}
	d.say("The primary ended. The standby is being promoted.")
	if err := errors.Join(d.Standby.Promote(ctx), d.Bouncer.SetTarget(d.Standby.Address())); err != nil {
		d.say("The failover failed: %v", err)
		return
	}
	d.say("The former standby at %s accepts writes.", d.Standby.Address())
	for _, b := range d.Replicas {
		if err := b.AwaitReady(ctx); err == nil {
			d.say("%s is ready.", b.Name)
		}
	}
}
