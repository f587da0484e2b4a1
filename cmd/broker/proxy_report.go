package main

import (
	"fmt"
	"os/exec"
	"os/signal"
	"strings"
	"sync"

	"accessbroker.internal/agent"
	"accessbroker.internal/egress"
	"accessbroker.internal/egress/forward"
	"accessbroker.internal/internal/screen"
)

// relayed runs a command and passes signals on to it. detach separates the work of this
// process from its signals, or returns false if one has arrived.
func (a *app) relayed(program string, command, env []string, detach func() bool) error {
	signals := relayedSignals()
	defer signal.Stop(signals)
	if !detach() {
		return errInterrupted
	}
	r := newRelay(signals)
	defer r.close()
	done, err := r.start(&exec.Cmd{Path: program, Args: command, Stdin: a.in, Stdout: a.out, Stderr: a.err, Env: env})
	if err != nil {
		fmt.Fprintf(a.err, "broker: starting the command: %v\n", err)
		return exitError(exitCodeOfStart(err))
	}
	for {
		select {
		case err := <-done:
			return commandExit(err)
		case s := <-r.signals:
			r.relay(s)
		}
	}
}

// A proxyReport tells a person at the terminal what a proxy does. The command shares the
// terminal, so the report is short: each refusal once.
type proxyReport struct {
	*app
	quiet bool
	paint screen.Palette

	mu       sync.Mutex
	seen     map[string]bool // refusals that were printed
	calls    int
	refused  int
	waiting  int // refused until a person approves
	obtained int
}

// maxShownRefusals bounds the refusals that are printed.
const maxShownRefusals = 50

func newProxyReport(a *app, quiet bool) *proxyReport {
	return &proxyReport{app: a, quiet: quiet, paint: screen.PaletteFor(a.err, a.getenv), seen: map[string]bool{}}
}

// start prints what the proxy is for.
func (p *proxyReport) start(rules *egress.Policy) {
	if p.quiet {
		return
	}
	const most = 3
	hosts, more := rules.Hosts(), ""
	if len(hosts) > most {
		more = fmt.Sprintf(" and %d more", len(hosts)-most)
		hosts = hosts[:most]
	}
	fmt.Fprintf(p.err, "broker: proxy for %s%s\n", printable(strings.Join(hosts, ", ")), more)
}

// called reports a call, or a refused tunnel.
func (p *proxy) called(e forward.Event) {
	p.metrics.Called(e)
	p.shown.called(e)
}

func (p *proxyReport) called(e forward.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Refusal == nil {
		p.calls++
		return
	}
	if e.Refusal.Code == egress.CodePending {
		p.waiting++
	} else {
		p.refused++
	}
	key := strings.Join([]string{e.Refusal.Code, e.Method, e.Host, e.Refusal.Request}, " ")
	if p.quiet || p.seen[key] || len(p.seen) >= maxShownRefusals {
		return
	}
	p.seen[key] = true
	verdict := p.paint.Bad("refused")
	if e.Refusal.Code == egress.CodePending {
		verdict = p.paint.Waiting("waiting")
	}
	fmt.Fprintf(p.err, "broker: %s %s %s%s\n%s%s", verdict, printable(e.Method), printable(e.Host), printable(shortened(e.Path, 60)), p.indented(e.Refusal.What+"."), p.indented("Next: "+e.Refusal.Next+"."))
}

// indented returns a text as indented lines that fit into a terminal, and as one line for
// other outputs.
func (p *proxyReport) indented(text string) string {
	rows := []string{printable(text)}
	if screen.IsTerminal(p.err) {
		rows = screen.Wrap(rows[0], screen.Width-2)
	}
	return "  " + strings.Join(rows, "\n  ") + "\n"
}

func shortened(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}

// kept reports what happened to a credential.
func (p *proxy) kept(e agent.KeptEvent) {
	p.metrics.Kept(e.Kind)
	if e.Kind == agent.KeptObtained {
		p.shown.mu.Lock()
		p.shown.obtained++
		p.shown.mu.Unlock()
	}
	switch {
	case e.Kind == agent.KeptDropped:
		p.shown.warn(fmt.Errorf("the credential of %s was revoked", e.Entitlement))
	case e.Kind == agent.KeptFailed && e.Lease != "":
		p.shown.warn(fmt.Errorf("renewing the credential of %s: %w", e.Entitlement, e.Err))
	}
}

// warn reports a fault that the command may not notice at once.
func (p *proxyReport) warn(err error) { fmt.Fprintf(p.err, "broker: %s\n", printable(err.Error())) }

// end prints what was done, and what still waits.
func (p *proxyReport) end(e *edge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range e.keeper.Pending() {
		fmt.Fprintf(p.err, "broker: request %s still waits for approval\n", printable(r.ID))
	}
	if !p.quiet && p.calls+p.refused+p.waiting > 0 {
		fmt.Fprintf(p.err, "broker: %s, %d refused, %d waiting; %s returned\n", counted(p.calls, "call"), p.refused, p.waiting, counted(p.obtained, "credential"))
	}
}
