package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"accessbroker.internal/agent/tokensource"
	"accessbroker.internal/api"
	"accessbroker.internal/internal/handoff"
)

const (
	// parentEvery is how often ci looks whether the process that started it still runs.
	parentEvery = 500 * time.Millisecond
	// urgentGrace is the time of the command once the job is about to be killed.
	urgentGrace = time.Second
	// returnWait and urgentReturn bound the return of all credentials.
	returnWait   = 10 * time.Second
	urgentReturn = 2 * time.Second
	// outputWait bounds the wait for children that the command left behind with its output.
	outputWait = 2 * time.Second
)

// endings are the signals that end a job.
var endings = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

// run runs the command.
func (j *ciJob) run(ctx context.Context, cmd *exec.Cmd, signals chan os.Signal) (err error) {
	if cmd.Env, err = j.environment(); err != nil {
		return err
	}
	r := newRelay(signals)
	defer r.close()
	done, err := r.start(cmd)
	if err != nil {
		fmt.Fprintf(j.err, "broker: starting the command: %v\n", err)
		return exitError(exitCodeOfStart(err))
	}
	err = j.supervise(ctx, r, done)
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // children that the command left behind keep its output open
	}
	for _, output := range j.outputs {
		err = errors.Join(err, output.Close())
	}
	return commandExit(err)
}

// environment returns the environment of the command.
func (j *ciJob) environment() ([]string, error) {
	var all handoff.Environment
	values := map[string]string{}
	clash := map[string]bool{}
	for _, g := range j.grants {
		e, err := g.pass.environment(g.held.Credential)
		if err != nil {
			return nil, err
		}
		all.Remove = append(all.Remove, e.Remove...)
		for _, kv := range e.Set {
			if old, twice := values[kv[0]]; twice && old != kv[1] {
				clash[kv[0]] = true
			}
			values[kv[0]] = kv[1]
			all.Set = append(all.Set, kv)
			if kv[0] == "BROKER_CREDENTIAL_FILE" && len(j.grants) > 1 {
				all.Set = append(all.Set, [2]string{kv[0] + "_" + handoff.VariableName(g.ask.Entitlement), kv[1]})
			}
		}
	}
	// A tool would use one of the two without a word.
	all.Set = slices.DeleteFunc(all.Set, func(kv [2]string) bool { return clash[kv[0]] })
	for name := range clash {
		all.Remove = append(all.Remove, name)
	}
	if !j.flags.keepIdentity {
		all.Remove = append(all.Remove, j.identityVariables()...)
	}
	return all.Of(os.Environ()), nil
}

// identityVariables returns the variables from which the command could get the job's
// identity.
func (j *ciJob) identityVariables() []string {
	list := j.platform.IdentityVariables()
	from, _ := j.setting(j.app.client.tokenFrom, "", "BROKER_TOKEN_FROM")
	if name, ok := strings.CutPrefix(from, fromVariable); ok {
		list = append(list, name)
	}
	if from == fromGitHub {
		list = append(list, tokensource.GitHubURLVariable, tokensource.GitHubTokenVariable)
	}
	return list
}

// supervise relays signals to the command, renews the credentials, and ends the command
// when one expires or the job ends. It returns when the command has ended.
func (j *ciJob) supervise(ctx context.Context, r *relay, done <-chan error) error {
	due := time.NewTimer(time.Until(j.due()))
	defer due.Stop()
	parent, parents := os.Getppid(), time.NewTicker(parentEvery)
	defer parents.Stop()
	var kill <-chan time.Time
	ending, renewal := false, due.C
	for {
		select {
		case err := <-done:
			return err
		case s := <-r.signals:
			r.relay(s)
			if !slices.Contains(endings, s) {
				continue
			}
			grace := j.flags.grace
			if ending {
				grace = min(grace, urgentGrace)
				renewal = nil
				go j.giveBack(ctx, true)
			}
			ending, kill = true, time.After(grace)
		case <-parents.C:
			// The platform signals the shell of a step, not its children. Without a parent,
			// the job is over and this process is about to be killed.
			if parent != 1 && os.Getppid() != parent {
				parent, ending = 1, true
				fmt.Fprintln(j.err, "broker: the shell of the step has ended; ending the command")
				r.send(syscall.SIGTERM)
				renewal = nil
				go j.giveBack(ctx, true)
				kill = time.After(min(j.flags.grace, urgentGrace))
			}
		case <-kill:
			r.kill()
		case <-renewal:
			if j.renew(ctx) {
				due.Reset(time.Until(j.due()))
				continue
			}
			fmt.Fprintln(j.err, "broker: no valid credential; ending the command")
			r.send(syscall.SIGTERM)
			kill = time.After(killDelay)
		}
	}
}

// due returns when the first credential is due for renewal.
func (j *ciJob) due() time.Time {
	next := j.grants[0].due
	for _, g := range j.grants[1:] {
		if g.due.Before(next) {
			next = g.due
		}
	}
	return next
}

// renew renews the credentials that are due, and reports whether all still work.
func (j *ciJob) renew(ctx context.Context) bool {
	all := true
	for _, g := range j.grants {
		if time.Until(g.due) > 0 {
			continue
		}
		usable, err := g.held.Renew(ctx)
		if err != nil {
			fmt.Fprintf(j.err, "broker: %s: %s\n", g.ask.Entitlement, printable(err.Error()))
		}
		g.due = time.Now().Add(g.held.Due())
		all = all && usable
	}
	return all
}

// giveBack returns all credentials and withdraws the requests that still wait. It does so
// for all at the same time: a canceled job is killed within seconds.
func (j *ciJob) giveBack(ctx context.Context, urgent bool) {
	j.back.Do(func() {
		j.close() // no file has a credential that has ended
		wait := returnWait
		if urgent || ctx.Err() != nil {
			wait = urgentReturn
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
		defer cancel()
		var group sync.WaitGroup
		for _, g := range j.grants {
			group.Go(func() { j.giveBackOne(ctx, g) })
		}
		group.Wait()
	})
}

func (j *ciJob) giveBackOne(ctx context.Context, g *ciGrant) {
	switch c := g.held.Credential; {
	case c != nil:
		l, err := j.client.Revoke(ctx, c.Lease, "the job ended")
		if err != nil {
			j.warnUnreturned(c, fmt.Errorf("returning lease %s: %w", c.Lease, err))
			return
		}
		fmt.Fprintf(j.err, "broker: %s returned%s\n", g.ask.Entitlement, afterReturn(l))
	case g.request != nil && g.request.Status == api.StatusPending:
		if _, err := j.client.Withdraw(ctx, g.request.ID); err != nil {
			fmt.Fprintf(j.err, "broker: withdrawing request %s: %s\n", g.request.ID, printable(err.Error()))
			return
		}
		fmt.Fprintf(j.err, "broker: %s withdrawn\n", g.ask.Entitlement)
	}
}

// afterReturn describes how long a returned credential may still work.
func afterReturn(l *api.Lease) string {
	until := l.ExpiresAt
	if l.WorksUntil.After(until) {
		until = l.WorksUntil
	}
	switch {
	case l.Revocation == "pending":
		return "; the issuer has yet to confirm it"
	case l.Revocation == "immediate" || !time.Now().Before(until):
		return ""
	}
	return "; it may work until " + clock(until)
}
