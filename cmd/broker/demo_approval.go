package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/internal/devworld/browser"
)

// approve shows a request that waits for a person, from the request to the token.
func (d *demo) approve(ctx context.Context) error {
	d.tell.Open("Closing a ticket needs a person, and the agent waits")
	pending, err := d.agent.Ask(ctx, d.requests("duplicate of INC-4710", "tickets:close"))
	if err != nil {
		return err
	}
	d.tell.Waiting(pending.Status, "%s: %s", approvalsMissing(pending), strings.Join(pending.Decision.Reasons, "; "))
	if err := expect(pending.Status == api.StatusPending, "the request is %s", pending.Status); err != nil {
		return err
	}
	decided := make(chan error, 1)
	var seen *api.Request
	go func() {
		var err error
		seen, err = d.agent.Await(ctx, pending.ID, pending.Version, 20*time.Second)
		decided <- err
	}()
	if err := d.refuseOwner(ctx, pending); err != nil {
		return err
	}
	if err := d.approveAsBen(ctx, pending); err != nil {
		return err
	}
	if err := <-decided; err != nil {
		return err
	}
	credential, err := d.agent.Collect(ctx, pending.ID)
	if err != nil {
		return err
	}
	d.tell.Good("issued", "a token until %s: Ben narrowed it to five minutes", clock(credential.ExpiresAt))
	if err := d.calls(ctx, http.MethodPost, "/tickets/4711/close", credential.Secret["token"], http.StatusOK); err != nil {
		return err
	}
	return expect(seen.Status == api.StatusApproved && time.Until(credential.ExpiresAt) <= 5*time.Minute,
		"the request is %s, the token expires at %s", seen.Status, credential.ExpiresAt)
}

// refuseOwner shows that the owner of the agent may not approve its request.
func (d *demo) refuseOwner(ctx context.Context, r *api.Request) error {
	ana, err := d.logIn(ctx, "ana")
	if err != nil {
		return err
	}
	d.tell.Say("Ana owns the agent, so she may not approve its requests:")
	args := []string{"approve", r.ID, "--yes"}
	d.tell.Types("broker " + strings.Join(args, " "))
	code := ana.runs(ctx, "", args...)
	d.tell.Bad("refused", "%s", strings.TrimPrefix(strings.TrimSpace(d.screen), "broker: "))
	return expect(code == exitDenied, "Ana approves for her own agent: broker approve ended with %d", code)
}

// approveAsBen shows some rows of what Ben sees, and his approval.
func (d *demo) approveAsBen(ctx context.Context, r *api.Request) error {
	ben, err := d.logIn(ctx, "ben")
	if err != nil {
		return err
	}
	d.tell.Say("Ben, of the support team, sees this and more, and approves just this:")
	args := []string{"approve", r.ID, "--ttl", "5m"}
	d.tell.Types("broker " + strings.Join(args, " "))
	code := ben.runs(ctx, "y", args...)
	for row := range strings.Lines(d.screen) {
		name, text, _ := strings.Cut(strings.TrimSuffix(row, "\n"), "  ")
		switch name {
		case "requester", "why", "scopes", "digest", "Approve? [y/N] y":
			d.tell.Shows(row)
		case "approved by":
			d.tell.Good("approved", "by %s", strings.TrimSpace(text))
		}
	}
	return expect(code == exitOK && strings.Contains(d.screen, "approved by"), "broker approve ended with %d", code)
}

// A demoPerson has a terminal. home is the folder of its session.
type demoPerson struct {
	*demo
	home string
}

// getenv is the environment of the person's terminal. The socket of the agent serves only
// for the trust bundle.
func (p demoPerson) getenv(name string) string {
	return map[string]string{
		"XDG_CONFIG_HOME": p.home, "BROKER_URL": p.world.URL(), "BROKER_ID": devworld.BrokerID,
		"SPIFFE_ENDPOINT_SOCKET": "unix://" + p.world.Socket("agent"),
	}[name]
}

// runs runs a command in the person's terminal and keeps its output in d.screen.
func (p demoPerson) runs(ctx context.Context, answer string, args ...string) (code int) {
	var out bytes.Buffer
	code = run(ctx, args, terminal{in: &typist{answer, &out}, out: &out, err: &out, getenv: p.getenv})
	p.screen = out.String()
	return code
}

// A typist is the input of a terminal in which a person gives one answer. The answer also
// shows on the screen.
type typist struct {
	answer string
	screen io.Writer
}

// Read returns the answer once.
func (t *typist) Read(b []byte) (int, error) {
	if t.answer == "" {
		return 0, io.EOF
	}
	n := copy(b, t.answer+"\n")
	t.answer = ""
	return t.screen.Write(b[:n])
}

// homeOf returns the folder of a person's session.
func (d *demo) homeOf(person string) string { return filepath.Join(d.world.Dir, "home-of-"+person) }

// logIn acts as both "broker login" and the person's browser: the person logs in at
// the provider and lets the terminal in.
func (d *demo) logIn(ctx context.Context, person string) (p demoPerson, err error) {
	p = demoPerson{d, d.homeOf(person)}
	session, err := d.openSession(ctx, person)
	if err != nil {
		return p, err
	}
	terminal := app{terminal: terminal{getenv: p.getenv}}
	return p, terminal.save(savedSession{p.getenv("BROKER_URL"), session.Token, session.Person, session.ExpiresAt})
}

func (d *demo) openSession(ctx context.Context, person string) (*api.Session, error) {
	verifier := rand.Text() + rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	b, err := browser.LogIn(ctx, d.world.PagesURL(), person)
	if err != nil {
		return nil, err
	}
	terminal, err := b.Follow(ctx, http.MethodPost, b.Pages()+"/ui/terminal", url.Values{
		"decision": {"allow"}, "port": {"65000"}, "state": {"demo"}, "challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])},
	})
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(terminal)
	if err != nil {
		return nil, fmt.Errorf("reading where the browser was sent: %w", err)
	}
	cfg := d.clientOf("agent") // for the trust bundle
	cfg.anonymous = true
	client, done, err := d.connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer done()
	return client.OpenSession(ctx, api.Login{Code: at.Query().Get("code"), Verifier: verifier})
}
