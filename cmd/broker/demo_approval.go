package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/api"
)

// approve has the agent ask for what takes a person, wait, and get it when one
// says yes.
func (d *demo) approve(ctx context.Context) error {
	d.chapter("It asks for what takes a person, and waits")
	pending, err := d.agent.Ask(ctx, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "duplicate of INC-4710"})
	if err != nil {
		return err
	}
	d.say("The agent asks for tickets:close:")
	d.say("")
	d.say("  %s: %s", pending.Status, waitsFor(pending))
	d.say("  because %s", strings.Join(pending.Decision.Reasons, "; "))
	if err := expect(pending.Status == api.StatusPending, "the request is %s", pending.Status); err != nil {
		return err
	}
	settled := make(chan error, 1)
	var seen *api.Request
	go func() {
		var err error
		seen, err = d.agent.Await(ctx, pending.ID, pending.Version, 20*time.Second)
		settled <- err
	}()
	if err := d.mayNot(ctx, pending); err != nil {
		return err
	}
	ben, err := d.logIn(ctx, "ben")
	if err != nil {
		return err
	}
	asked, err := ben.Request(ctx, pending.ID)
	if err != nil {
		return err
	}
	d.say("")
	d.say("Ben of the support team logs in by his browser, and approves in his terminal. What")
	d.say("he approves is exactly what he sees, by its digest:")
	d.say("")
	d.say("  $ broker approve %s --ttl 5m --comment \"checked\"", asked.ID)
	d.say("  who     %s, %s", asked.Requester, asked.RequesterKind)
	d.say("  what    %s: %s", asked.Entitlement, strings.Join(asked.Scopes, " "))
	d.say("  why     %s", asked.Justification)
	d.say("  digest  %.16s…", asked.Digest)
	if _, err := ben.Vote(ctx, asked.ID, api.Vote{Decision: api.Approve, Digest: asked.Digest, Comment: "checked", TTL: api.Duration(5 * time.Minute)}); err != nil {
		return err
	}
	if err := <-settled; err != nil {
		return err
	}
	credential, err := d.agent.Collect(ctx, pending.ID)
	if err != nil {
		return err
	}
	d.say("")
	d.say("The agent, which waited without polling, is told that it is %s, and collects a", seen.Status)
	d.say("token that ends at %s: after five minutes, because Ben said so.", clock(credential.ExpiresAt))
	status, answer, err := d.tickets.call(ctx, http.MethodPost, "/tickets/4711/close", credential.Secret["token"])
	if err != nil {
		return err
	}
	d.say("")
	d.say("  POST /tickets/4711/close  %d  %s", status, answer)
	return expect(seen.Status == api.StatusApproved && status == http.StatusOK && time.Until(credential.ExpiresAt) <= 5*time.Minute,
		"the request is %s, the call %d, the token lives until %s", seen.Status, status, credential.ExpiresAt)
}

// mayNot has whoever answers for the agent try to approve what it asked for.
func (d *demo) mayNot(ctx context.Context, r *api.Request) error {
	ana, err := d.logIn(ctx, "ana")
	if err != nil {
		return err
	}
	_, err = ana.Vote(ctx, r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.OwnRequest {
		return fmt.Errorf("ana, who answers for the agent, approves: %v", err)
	}
	d.say("")
	d.say("Ana answers for the agent, so she may not approve what it asks for:")
	d.say("")
	d.say("  %d %s: %s", refused.Status, refused.Code, refused.Detail)
	return nil
}

// logIn does in a browser's stead what a person does who runs "broker login":
// logs in at the provider, and lets the terminal act for them.
func (d *demo) logIn(ctx context.Context, person string) (*api.Client, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	b := demoBrowser{&http.Client{Jar: jar, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	pages := d.world.pagesURL()
	provider, err := b.visit(ctx, http.MethodGet, pages+"/ui/login", nil)
	if err != nil {
		return nil, err
	}
	back, err := b.visit(ctx, http.MethodPost, provider, url.Values{"person": {person}})
	if err != nil {
		return nil, err
	}
	if _, err = b.visit(ctx, http.MethodGet, back, nil); err != nil {
		return nil, err
	}
	verifier := rand.Text() + rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	terminal, err := b.visit(ctx, http.MethodPost, pages+"/ui/terminal", url.Values{
		"decision": {"allow"}, "port": {"65000"}, "state": {"demo"}, "challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])},
	})
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(terminal)
	if err != nil {
		return nil, fmt.Errorf("reading where the browser was sent: %w", err)
	}
	cfg := d.clientOf("agent") // whose socket says whom to trust
	cfg.anonymous = true
	client, done, err := d.connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, done)
	session, err := client.OpenSession(ctx, api.Login{Code: at.Query().Get("code"), Verifier: verifier})
	if err != nil {
		return nil, err
	}
	client.Token = func(context.Context) (string, error) { return session.Token, nil }
	return client, nil
}

// A demoBrowser follows no redirect by itself.
type demoBrowser struct{ client *http.Client }

// visit gives where the browser is sent.
func (b demoBrowser) visit(ctx context.Context, method, where string, form url.Values) (next string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, where, strings.NewReader(form.Encode()))
	if err != nil {
		return "", fmt.Errorf("going to %s: %w", where, err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("going to %s: %w", where, err)
	}
	if err := resp.Body.Close(); err != nil {
		return "", err
	}
	if next = resp.Header.Get("Location"); next == "" {
		return "", fmt.Errorf("going to %s: %s, and it leads nowhere", where, resp.Status)
	}
	return next, nil
}
