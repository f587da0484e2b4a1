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
)

// approve shows a request that waits for a person, from the request to the token.
func (d *demo) approve(ctx context.Context) error {
	d.chapter("It requests a scope that needs an approval, and waits")
	pending, err := d.agent.Ask(ctx, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "duplicate of INC-4710"})
	if err != nil {
		return err
	}
	d.say("The agent requests tickets:close:")
	d.say("")
	d.say("  %s: %s", pending.Status, approvalsMissing(pending))
	d.say("  because %s", strings.Join(pending.Decision.Reasons, "; "))
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
	ben, err := d.logIn(ctx, "ben")
	if err != nil {
		return err
	}
	d.say("")
	d.say("Ben of the support team logs in with his browser, and approves in his")
	d.say("terminal. His approval is bound to the digest of the request that he sees:")
	d.say("")
	if code := ben.runs(ctx, "y", "approve", pending.ID, "--ttl", "5m", "--comment", "checked"); code != exitOK {
		return fmt.Errorf("broker approve ended with %d", code)
	}
	if err := <-decided; err != nil {
		return err
	}
	credential, err := d.agent.Collect(ctx, pending.ID)
	if err != nil {
		return err
	}
	d.say("")
	d.say("The agent was waiting in a long poll. It learns that the request is %s,", seen.Status)
	d.say("and collects a token that expires at %s: after five", clock(credential.ExpiresAt))
	d.say("minutes, because Ben narrowed the TTL.")
	status, answer, err := d.tickets.call(ctx, http.MethodPost, "/tickets/4711/close", credential.Secret["token"])
	if err != nil {
		return err
	}
	d.say("")
	d.say("  POST /tickets/4711/close  %d  %s", status, answer)
	return expect(seen.Status == api.StatusApproved && status == http.StatusOK && time.Until(credential.ExpiresAt) <= 5*time.Minute,
		"the request is %s, the call %d, the token expires at %s", seen.Status, status, credential.ExpiresAt)
}

// refuseOwner shows that the owner of the agent may not approve its request.
func (d *demo) refuseOwner(ctx context.Context, r *api.Request) error {
	ana, err := d.logIn(ctx, "ana")
	if err != nil {
		return err
	}
	d.say("")
	d.say("Ana owns the agent, so she may not approve its requests:")
	d.say("")
	code := ana.runs(ctx, "", "approve", r.ID, "--yes")
	return expect(code == exitDenied, "Ana approves for her own agent: broker approve ended with %d", code)
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

// runs runs a command in the person's terminal and prints its output.
func (p demoPerson) runs(ctx context.Context, answer string, args ...string) (code int) {
	var screen bytes.Buffer
	code = run(ctx, args, terminal{in: &typist{answer, &screen}, out: &screen, err: &screen, getenv: p.getenv})
	p.screen = screen.String()
	p.say("  $ broker %s", strings.Join(args, " "))
	for line := range strings.Lines(p.screen) {
		p.say("  %s", strings.TrimSuffix(line, "\n"))
	}
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

// logIn acts as both "broker login" and the person's browser: the person logs in at
// the provider and lets the terminal in.
func (d *demo) logIn(ctx context.Context, person string) (p demoPerson, err error) {
	p = demoPerson{d, filepath.Join(d.world.Dir, "home-of-"+person)}
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
	b, err := devworld.LogIn(ctx, d.world.PagesURL(), person)
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
