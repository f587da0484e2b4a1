package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/broker"
	svc "accessbroker.internal/internal/service"
)

func (a *app) serveCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the broker",
		Long: `serve runs the broker by an operator's file until SIGTERM, and then drains; a
second one ends it at once. SIGHUP reads policies and catalogue again. Try the
file first: broker check FILE.

Environment: BROKER_SEAL_KEY (a seal key, where a file is inconvenient), GOGC,
GOMEMLIMIT and GOMAXPROCS (Go's own).`,
		Example: `  broker serve --config /etc/broker/broker.yaml`,
		Args:    exactly(0, "no arguments but --config FILE"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.load(config)
			if err != nil {
				return err
			}
			a.tune()
			log := newLogger(a.err, s.logFormat, s.logLevel)
			build := svc.ReadBuild()
			log.Info("starting", "version", build.Version, "commit", build.Commit, "date", build.Date, "go", build.Go)
			v, err := assemble(c.Context(), s, a.getenv, log)
			if err != nil {
				return err
			}
			hangups := make(chan os.Signal, 1)
			signal.Notify(hangups, syscall.SIGHUP)
			defer signal.Stop(hangups)
			go v.reloadOn(c.Context(), hangups)
			return v.Run(c.Context(), func(listeners []net.Listener) {
				for _, l := range listeners {
					log.Info("listening", "address", l.Addr().String())
				}
				a.notify("READY=1")
			})
		},
	}
	configFlag(c, &config)
	return c
}

// configFlag is for every command that reads the operator's file.
func configFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "config", "/etc/broker/broker.yaml", "the operator's file")
}

func newLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// reloadOn reloads whenever a signal comes. A bad set keeps the running one.
func (v *service) reloadOn(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			revision, err := v.reloadBy(ctx, broker.Identity{})
			if err != nil {
				v.log.ErrorContext(ctx, "reload refused: the rules before stay", "err", err)
				continue
			}
			v.log.InfoContext(ctx, "reloaded", "revision", revision)
		}
	}
}

// Memory: little of what a request allocates lives long, so collecting less
// often saves much time; the limit keeps that from growing without bound.
const (
	gcPercent     = 250
	memoryLimit   = 256 << 20
	giveBackEvery = time.Minute
)

// giveBack returns to the system what a burst took, such as a thousand callers
// that arrive at once to wait: collecting rarely would keep it.
func giveBack(ctx context.Context) error {
	tick := time.NewTicker(giveBackEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			debug.FreeOSMemory()
		}
	}
}

// tune sets what the operator did not set by Go's own variables.
func (a *app) tune() {
	if a.getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if a.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	// Where there is one processor, Go learns late that SQLite waits for the disk,
	// and until then everybody would: 16 callers got half as many credentials.
	if a.getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
}

// notify tells systemd (sd_notify(3)); without it, nobody.
func (a *app) notify(state string) {
	socket := a.getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	c, err := net.Dial("unixgram", socket)
	if err != nil {
		fmt.Fprintf(a.err, "broker: telling systemd: %v\n", err)
		return
	}
	_, _ = io.WriteString(c, state) // systemd's own time-out finds out
	_ = c.Close()
}

// needsRestart names what differs and is not replaced by a reload.
func (s *settings) needsRestart(fresh *settings) (changed []string) {
	for _, part := range []struct {
		name       string
		old, fresh any
	}{
		{"server.external_url", s.externalURL, fresh.externalURL},
		{"server.listeners", s.listeners, fresh.listeners},
		{"server.metrics", s.metrics, fresh.metrics},
		{"server.admin_socket", s.adminSocket, fresh.adminSocket},
		{"server.seal_keys", s.sealKeys, fresh.sealKeys},
		{"server.signing", s.signing, fresh.signing},
		{"server.admission", s.admission, fresh.admission},
		{"server.checkpoint_file", s.checkpoint, fresh.checkpoint},
		{"server.log", []any{s.logFormat, s.logLevel}, []any{fresh.logFormat, fresh.logLevel}},
		{"attest.trust_domain", s.trustDomain, fresh.trustDomain},
		{"attest.trust_domains", s.trustDomains, fresh.trustDomains},
		{"attest.audiences", s.audiences, fresh.audiences},
		{"attest.workload_api", s.workloadAPI, fresh.workloadAPI},
		{"attest.people", s.people, fresh.people},
		{"server.sessions", []time.Duration{s.sessionIdle, s.sessionLasts}, []time.Duration{fresh.sessionIdle, fresh.sessionLasts}},
		{"server.ticket_url", s.ticketURL, fresh.ticketURL},
		{"attest.bundles", s.bundles, fresh.bundles},
		{"store", s.store, fresh.store},
		{"issuers", s.issuers, fresh.issuers},
	} {
		if !reflect.DeepEqual(part.old, part.fresh) {
			changed = append(changed, part.name)
		}
	}
	return changed
}
