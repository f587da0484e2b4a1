package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
)

func (a *app) serveCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the broker",
		Long: `serve runs the broker until SIGTERM or SIGINT, and then drains: /readyz fails,
answers close their connections, and after server.drain.delay the listeners
close. Running calls get server.drain.timeout. A second signal ends the broker
at once. SIGHUP reloads policies and catalogue. Check the file first: broker
check FILE.

Environment: BROKER_SEAL_KEY (a seal key, where a file is inconvenient), GOGC,
GOMEMLIMIT and GOMAXPROCS (Go's own).`,
		Example: `  broker serve --config /etc/broker/broker.yaml`,
		Args:    exactly(0, "no arguments but --config FILE"),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, a.getenv)
			if err != nil {
				return err
			}
			a.tune(c.Context())
			log, flush := newLogger(a.err, cfg.LogFormat, cfg.LogLevel)
			defer flush()
			log.Info("starting", "version", service.ReadBuild().Version, "file", cfg.Path)
			ready := func([]net.Listener) { a.notifySystemd("READY=1") }
			s, err := service.New(c.Context(), service.Options{Config: cfg, Getenv: a.getenv, Log: log, FlushLog: flush, Ready: ready})
			if err != nil {
				return err
			}
			defer context.AfterFunc(c.Context(), func() { a.notifySystemd(stopping(cfg.Drain)) })()
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, syscall.SIGHUP)
			defer signal.Stop(signals)
			go s.ReloadOn(c.Context(), signals)
			return s.Run(c.Context())
		},
	}
	configFlag(c, &file)
	return c
}

// configFlag adds --config to a command that reads the operator's file.
func configFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "config", "/etc/broker/broker.yaml", "the operator's file")
}

// closeTime is how long closing the store may take after the drain.
const closeTime = 20 * time.Second

// stopping is the state of a broker that drains. It extends a TimeoutStopSec that is
// shorter than the drain.
func stopping(d config.Drain) string {
	return fmt.Sprintf("STOPPING=1\nEXTEND_TIMEOUT_USEC=%d", (d.Delay + d.Timeout + closeTime).Microseconds())
}

// notifySystemd reports a state to systemd, if it started the broker (sd_notify(3)).
func (a *app) notifySystemd(state string) {
	socket := a.getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	c, err := net.Dial("unixgram", socket)
	if err != nil {
		fmt.Fprintf(a.err, "broker: notifying systemd: %v\n", err)
		return
	}
	_, _ = io.WriteString(c, state) // systemd times out by itself
	_ = c.Close()
}
