package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"

	"accessbroker.internal/egress/scrub"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/mcp"
)

// keepNothing shows an agent that calls an API and has no credential to reveal.
func (d *demo) keepNothing(ctx context.Context) error {
	d.tell.Open("The agent is asked for its credential, and has none to reveal")
	d.tell.Say("This agent has no identity and no credential, only the socket of a program that makes its calls.")
	client, err := d.connectAgent(ctx)
	if err != nil {
		return err
	}
	calls, err := (&callFlags{ca: d.world.Bundle()}).newCalls(d.app, client, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	server := mcp.New(mcp.Config{Calls: calls.calls})
	socket := &peerSocket{path: d.world.Path("mcp.sock")}
	saw := new(witness)
	var found []*demoFinding
	err = calls.while(ctx, d.app, func(ctx context.Context) error {
		ctx, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		defer func() { stop(); <-ended }()
		listening, err := socket.listen(slog.New(slog.DiscardHandler), refuseStream)
		if err != nil {
			ended <- nil
			return err
		}
		go func() {
			ended <- serveStreams(ctx, listening, slog.New(slog.DiscardHandler), func(ctx context.Context, stream io.ReadWriteCloser) error {
				return server.Run(ctx, client, stream, saw.of(stream))
			})
		}()
		if found, err = d.runAgent(ctx, socket.path); err != nil {
			return err
		}
		for _, c := range calls.keeper.Held() {
			saw.secrets = append(saw.secrets, scrub.Secrets(c)...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.tellFindings(found, saw)
}

// runAgent runs the agent in a process of its own, in an empty folder.
func (d *demo) runAgent(ctx context.Context, socket string) (found []*demoFinding, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp(d.world.Dir, "agent-")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, "demo-agent", socket, d.world.TicketsURL(), d.world.URL())
	cmd.Args[0] = "broker"
	cmd.Dir, cmd.Env = folder, []string{"HOME=" + folder, "PATH=" + os.Getenv("PATH")}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("the agent: %w: %s", err, errs.String())
	}
	for decode := json.NewDecoder(bytes.NewReader(out)); ; {
		f := new(demoFinding)
		if err := decode.Decode(f); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		found = append(found, f)
	}
}

// tellFindings tells what the agent did, and checks that no form of a token has reached it.
func (d *demo) tellFindings(found []*demoFinding, saw *witness) error {
	if err := expect(len(found) == 5, "the agent did %d things", len(found)); err != nil {
		return err
	}
	d.finding(found[0], "accepted")
	d.tell.Say("Ticket 4712 attacks agents that read it, and this one obeys everything:")
	d.finding(found[1], "poisoned")
	d.finding(found[2], "scrubbed")
	d.finding(found[3], "refused")
	search := found[4]
	d.tell.Note("searched", "%s variables, %s files, %s processes, and %s bytes of conversation", search.Found["variables"], search.Found["files"], search.Found["processes"], search.Found["bytes"])
	if len(search.Tokens) == 0 {
		d.tell.Good("nothing", "“I have no token that I could print.”")
	}
	hidden := len(saw.secrets) > 0 && scrub.New(saw.secrets...).String(saw.text.String()) == saw.text.String()
	if hidden {
		d.tell.Good("verified", "the API got a token; no part of it, in any form, reached the agent")
	}
	ok := len(search.Tokens) == 0 && hidden && found[0].Status == 200 && strings.Contains(found[1].Text, devworld.Poison[:20]) && found[2].Masked && strings.HasPrefix(found[3].Text, "host_not_allowed")
	return expect(ok, "the findings are %+v, hidden: %v", found, hidden)
}

// finding tells one call of the agent.
func (d *demo) finding(f *demoFinding, verdict string) {
	call := "GET " + strings.TrimPrefix(f.URL, d.world.TicketsURL())
	text := strings.TrimSpace(f.Text)
	if f.Status == 0 {
		code, _, _ := strings.Cut(text, ":")
		d.tell.Bad(verdict, "%-27s  %s", call, code)
		return
	}
	d.tell.Good(verdict, "%-27s  %d", call, f.Status)
	d.tell.Say("%s", text)
}

// A witness reads along what an agent receives.
type witness struct {
	mu      sync.Mutex
	text    strings.Builder
	secrets []string
}

func (w *witness) of(out io.WriteCloser) io.WriteCloser { return &witnessed{out, w} }

type witnessed struct {
	io.WriteCloser
	w *witness
}

func (o *witnessed) Write(p []byte) (int, error) {
	o.w.mu.Lock()
	o.w.text.Write(p)
	o.w.mu.Unlock()
	return o.WriteCloser.Write(p)
}
