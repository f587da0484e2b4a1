package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// A pollAnswer is the answer of the token endpoint or of the backchannel endpoint.
type pollAnswer struct {
	status int
	header http.Header
	text   string
	api.TokenResponse
	failed  api.OAuthError
	started api.BackchannelResponse
}

// oauth posts a form to an endpoint as a caller.
func (w *world) oauth(caller, path, form string, header ...string) (a pollAnswer) {
	w.t.Helper()
	resp := w.do("POST", path, "application/x-www-form-urlencoded", form, append([]string{"Authorization", "Bearer " + caller}, header...)...)
	text := w.body(resp)
	a.status, a.header, a.text = resp.StatusCode, resp.Header, string(text)
	if len(text) == 0 {
		return a
	}
	var into any = &a.failed
	switch {
	case resp.StatusCode == 200 && path == backchannelPath:
		into = &a.started
	case resp.StatusCode == 200:
		into = &a.TokenResponse
	}
	if err := json.Unmarshal(text, into); err != nil {
		w.t.Fatalf("got %s %s", resp.Status, text)
	}
	return a
}

// A way to wait for a token: how to begin, and how to poll.
type waitingWay struct {
	name  string
	begin func(w *world, caller, extra string) (code, request string)
	grant string
	param string
}

var waitingWays = []waitingWay{
	{"deferred", func(w *world, caller, extra string) (string, string) {
		a := w.oauth(caller, "/oauth2/token", credentials+"audience=guarded&scope=read&completion_mode=deferred"+extra)
		if a.status != 400 || a.failed.Error != "authorization_pending" {
			w.t.Fatalf("got %d %s, want a deferred response", a.status, a.text)
		}
		return string(a.failed.DeferralCode), a.failed.RequestID
	}, api.GrantDeferred, "deferral_code"},
	{"backchannel", func(w *world, caller, extra string) (string, string) {
		a := w.oauth(caller, backchannelPath, "login_hint="+url.QueryEscape(caller)+"&audience=guarded&scope=openid+read"+extra)
		if a.status != 200 {
			w.t.Fatalf("got %d %s, want an acknowledgement", a.status, a.text)
		}
		return string(a.started.AuthReqID), a.started.RequestID
	}, api.GrantBackchannel, "auth_req_id"},
}

func (way waitingWay) form(code string) string {
	return url.Values{"grant_type": {way.grant}, way.param: {code}}.Encode()
}

func (way waitingWay) poll(w *world, caller, code string) pollAnswer {
	w.t.Helper()
	w.polls = newPolls() // the polls of the test are not too often
	return w.oauth(caller, "/oauth2/token", way.form(code))
}

// eachWay runs a test for every standard way to wait for a token.
func eachWay(t *testing.T, f func(t *testing.T, w *world, way waitingWay)) {
	t.Parallel()
	for _, way := range waitingWays {
		t.Run(way.name, func(t *testing.T) { f(t, newWorld(t, withPeople), way) })
	}
}

// vote lets both approvers of guarded decide.
func (w *world) vote(t *testing.T, request, decision string) {
	t.Helper()
	for _, person := range []string{"login/ben", "login/cleo"} {
		client := w.asPerson(t, person)
		r := must[*api.Request](t)(client.Request(t.Context(), request))
		must[*api.Request](t)(client.Vote(t.Context(), request, api.Vote{Decision: decision, Digest: r.Digest, Comment: "secret reasons of " + person}))
		if decision == api.Deny {
			return
		}
	}
}

func wantError(t *testing.T, what string, a pollAnswer, status int, name string) {
	t.Helper()
	if a.status != status || a.failed.Error != name || a.failed.Description == "" || a.AccessToken != "" {
		t.Errorf("%s: got %d %s, want %d %s", what, a.status, a.text, status, name)
	}
	if got := a.header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("%s: got Cache-Control %q, want no-store", what, got)
	}
}

// A client waits for people, and collects one token.
func TestClientWaitsForApproval(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way waitingWay) {
		code, request := way.begin(w, agent, "")
		wantError(t, "before the approval", way.poll(w, agent, code), 400, "authorization_pending")
		w.vote(t, request, api.Approve)
		a := way.poll(w, agent, code)
		if a.status != 200 || a.AccessToken == "" || a.RequestID != request || a.Scope != "read" || a.TokenType != "Bearer" || a.IssuedTokenType != api.TokenTypeAccessToken {
			t.Errorf("after the approval: got %d %s", a.status, a.text)
		}
		again := way.poll(w, agent, code)
		wantError(t, "after the collection", again, 400, "invalid_grant")
		if !strings.Contains(again.failed.Description, "redeemed") {
			t.Errorf("got %q, want that the code was redeemed", again.failed.Description)
		}
	})
}

// The response of a deferred request has exactly what the draft says.
func TestDeferredResponse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	const ask = credentials + "audience=guarded&scope=read"
	a := w.oauth(agent, "/oauth2/token", ask+"&completion_mode=other+deferred")
	wantError(t, "opted in", a, 400, "authorization_pending")
	if len(a.failed.DeferralCode) < 43 || a.failed.Interval != 5 || a.failed.ExpiresIn < 3590 || a.failed.ExpiresIn > 3600 || strings.ContainsAny(string(a.failed.DeferralCode), ".=+/") {
		t.Errorf("got %s", a.text)
	}
	poll := waitingWays[0].poll(w, agent, string(a.failed.DeferralCode))
	if poll.failed.DeferralCode != "" || poll.failed.Interval != 0 || poll.failed.ExpiresIn != 0 || !strings.HasPrefix(poll.failed.Description, "step=") {
		t.Errorf("a poll repeats the deferred response: %s", poll.text)
	}
	// Without the opt-in, the response has no code.
	for _, mode := range []string{"", "&completion_mode=", "&completion_mode=Deferred", "&completion_mode=deferred2"} {
		if a := w.oauth(agent, "/oauth2/token", ask+mode); a.failed.Error != "authorization_pending" || a.failed.DeferralCode != "" || a.failed.RequestID == "" {
			t.Errorf("%q: got %s", mode, a.text)
		}
	}
	wantError(t, "a repeated mode", w.oauth(agent, "/oauth2/token", ask+"&completion_mode=deferred+deferred"), 400, "invalid_request")
	// What needs no approval is not deferred.
	if a := w.oauth(agent, "/oauth2/token", credentials+"audience=tickets&scope=tickets:read&completion_mode=deferred"); a.status != 200 || a.AccessToken == "" {
		t.Errorf("got %d %s, want a token", a.status, a.text)
	}
	// Token exchange is deferred as well, and its final response has the requested type.
	exchange := url.Values{"grant_type": {api.GrantTokenExchange}, "subject_token": {agent}, "subject_token_type": {api.TokenTypeJWT}, "requested_token_type": {api.TokenTypeJWT}, "audience": {"guarded"}, "scope": {"read"}, "ticket": {"T-1"}, "completion_mode": {"deferred"}}
	a = w.oauth(agent, "/oauth2/token", exchange.Encode())
	wantError(t, "token exchange", a, 400, "authorization_pending")
	w.vote(t, a.failed.RequestID, api.Approve)
	if a := waitingWays[0].poll(w, agent, string(a.failed.DeferralCode)); a.status != 200 || a.IssuedTokenType != api.TokenTypeJWT {
		t.Errorf("got %d %s, want a token of the requested type", a.status, a.text)
	}
}

// The final response has the authorization details under the type that the client used.
func TestWaitingKeepsTheTypeOfDetails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	for _, kind := range []string{api.ParametersDetail, "guarded-repository"} {
		details := url.QueryEscape(`[{"type":"` + kind + `","parameters":{"name":"billing"}}]`)
		a := w.oauth(agent, "/oauth2/token", credentials+"audience=guarded-repository&scope=clone&completion_mode=deferred&justification="+kind+"&authorization_details="+details)
		wantError(t, kind, a, 400, "authorization_pending")
		w.vote(t, a.failed.RequestID, api.Approve)
		got := waitingWays[0].poll(w, agent, string(a.failed.DeferralCode))
		if got.status != 200 || len(got.AuthorizationDetails) != 1 || got.AuthorizationDetails[0].Type != kind {
			t.Errorf("%s: got %d %s", kind, got.status, got.text)
		}
	}
}

// A denial ends the wait. The answer has no personal data.
func TestWaitingEndsWithADenial(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way waitingWay) {
		code, request := way.begin(w, agent, "")
		w.vote(t, request, api.Deny)
		a := way.poll(w, agent, code)
		wantError(t, "denied", a, 400, "access_denied")
		if strings.Contains(a.text, "ben") || strings.Contains(a.text, "secret reasons") {
			t.Errorf("the answer names the approver: %s", a.text)
		}
	})
}

// No one approves in time, or the client is too late.
func TestWaitingEndsWithTime(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way waitingWay) {
		code, request := way.begin(w, agent, "")
		w.changeRequest(t, request, func(r *broker.Request) { r.Lapses = time.Now().Add(-time.Second) })
		wantError(t, "lapsed", way.poll(w, agent, code), 400, "expired_token")
		code, request = way.begin(w, agent, "&ticket=T-2")
		w.vote(t, request, api.Approve)
		w.changeRequest(t, request, func(r *broker.Request) { r.CollectUntil = time.Now().Add(-time.Second) })
		wantError(t, "the grant has ended", way.poll(w, agent, code), 400, "expired_token")
	})
}

// changeRequest changes the row of a request.
func (w *world) changeRequest(t *testing.T, request string, f func(*broker.Request)) {
	t.Helper()
	id, err := broker.ParseRequestID(request)
	if err != nil {
		t.Fatal(err)
	}
	err = w.store.Update(t.Context(), []broker.Key{id}, func(tx broker.Tx) error {
		r, err := broker.Get[*broker.Request](tx, id)
		if err == nil {
			f(r)
			tx.Put(r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The client cancels by revoking its code (RFC 7009), also after the approval. A token that
// was collected is not affected.
func TestClientCancels(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way waitingWay) {
		revoke := func(caller, code string) {
			t.Helper()
			a := w.oauth(caller, "/oauth2/revoke", url.Values{"token": {code}, "token_type_hint": {api.TokenTypeDeferralCode}}.Encode())
			if a.status != 200 || a.text != "" {
				t.Errorf("got %d %s, want 200", a.status, a.text)
			}
		}
		code, request := way.begin(w, agent, "")
		revoke(partner, code)
		wantError(t, "after another client's revocation", way.poll(w, agent, code), 400, "authorization_pending")
		revoke(agent, code)
		revoke(agent, code)
		wantError(t, "after the revocation", way.poll(w, agent, code), 400, "access_denied")
		if r := must[*api.Request](t)(w.as(agent).Request(t.Context(), request)); r.Status != api.StatusWithdrawn {
			t.Errorf("got status %s, want withdrawn", r.Status)
		}

		code, request = way.begin(w, agent, "&ticket=T-2")
		w.vote(t, request, api.Approve)
		revoke(agent, code)
		wantError(t, "after the revocation of an approved request", way.poll(w, agent, code), 400, "access_denied")
		if _, err := w.as(agent).Collect(t.Context(), request); err == nil {
			t.Error("a cancelled request was collected")
		}

		code, request = way.begin(w, agent, "&ticket=T-3")
		w.vote(t, request, api.Approve)
		a := way.poll(w, agent, code)
		revoke(agent, code)
		if in := must[*api.Introspection](t)(w.as(agent).Introspect(t.Context(), a.AccessToken)); !in.Active {
			t.Error("the revocation of a redeemed code ended the token")
		}
		for _, none := range []string{"x", strings.Repeat("A", 108), code[1:], way.form(code)} {
			revoke(agent, none)
		}
	})
}

// A code is of no use to anyone else, and neither is a part of it.
func TestCodesAreBound(t *testing.T) {
	certificate := func(c *Config) {
		withPeople(c)
		plain := c.Authenticate
		c.Authenticate = func(r *http.Request, tokens ...string) (broker.Identity, error) {
			who, err := plain(r, tokens...)
			if r.Header.Get("X-Certificate") != "" {
				who.Proof.Method = broker.MethodX509SVID
			}
			return who, err
		}
	}
	t.Parallel()
	for _, way := range waitingWays {
		t.Run(way.name, func(t *testing.T) {
			w := newWorld(t, certificate)
			code, _ := way.begin(w, agent, "")
			const another = partner
			wantError(t, "another client", way.poll(w, another, code), 400, "invalid_grant")
			unknown := way.poll(w, another, "x")
			if stolen := way.poll(w, another, code); stolen.failed.Description != unknown.failed.Description || stolen.failed.RequestID != "" {
				t.Errorf("got %s for another client's code, and %s for an unknown one", stolen.text, unknown.text)
			}
			bad := map[string]string{
				"truncated": code[:len(code)-4], "cut at the start": code[4:], "longer": code + "AAAA", "padded": code + "=", "with a space": code + " ",
				"too long": strings.Repeat("A", 100_00), "short": "A", "another alphabet": strings.Repeat("é", 40),
			}
			for at := 0; at < len(code); at += 7 {
				bad[fmt.Sprint("changed at ", at)] = code[:at] + string(code[at]^1) + code[at+1:]
			}
			for name, text := range bad {
				wantError(t, name, way.poll(w, agent, text), 400, "invalid_grant")
			}
			wantError(t, "no code", w.oauth(agent, "/oauth2/token", "grant_type="+way.grant), 400, "invalid_request")
			for _, other := range waitingWays {
				if other.name != way.name {
					wantError(t, "in the other grant", other.poll(w, agent, code), 400, "invalid_grant")
				}
			}
			for _, more := range []string{"scope=write", "audience=guarded", "completion_mode=deferred", "ttl=1h", "subject_token=x", "request_id=req_x", "binding_message=x"} {
				wantError(t, more, w.oauth(agent, "/oauth2/token", way.form(code)+"&"+more), 400, "invalid_request")
			}
			wantError(t, "the right one", way.poll(w, agent, code), 400, "authorization_pending")

			bound := way.beginWith(w, "X-Certificate", "yes")
			wantError(t, "without the certificate", way.poll(w, agent, bound), 400, "invalid_grant")
			wantError(t, "with it", w.oauth(agent, "/oauth2/token", way.form(bound), "X-Certificate", "yes"), 400, "authorization_pending")
			// The code of another broker, which has other keys.
			sealer, err := broker.NewSealer([]byte(strings.Repeat("k", broker.SealKeySize)))
			if err != nil {
				t.Fatal(err)
			}
			foreign := newWorld(t, func(c *Config) { withPeople(c); c.Sealer = sealer })
			theirs, _ := way.begin(foreign, agent, "")
			wantError(t, "of another broker", way.poll(w, agent, theirs), 400, "invalid_grant")
		})
	}
}

// beginWith begins another request with a header.
func (way waitingWay) beginWith(w *world, header ...string) string {
	if way.grant == api.GrantBackchannel {
		return string(w.oauth(agent, backchannelPath, "login_hint="+agent+"&audience=guarded&scope=read&ticket=T-9", header...).started.AuthReqID)
	}
	return string(w.oauth(agent, "/oauth2/token", credentials+"audience=guarded&scope=read&ticket=T-9&completion_mode=deferred", header...).failed.DeferralCode)
}

// Polls that come too early are slowed down with status 400, more each time. Each code
// counts alone.
func TestPollsAreSlowedDown(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way waitingWay) {
		code, request := way.begin(w, agent, "")
		second, _ := way.begin(w, agent, "&ticket=T-2")
		poll := func(code string) pollAnswer { return w.oauth(agent, "/oauth2/token", way.form(code)) }
		wantError(t, "first", poll(code), 400, "authorization_pending")
		a := poll(code)
		wantError(t, "second", a, 400, "slow_down")
		if got := a.header.Get("Retry-After"); got != "10" {
			t.Errorf("got Retry-After %q, want 10", got)
		}
		wantError(t, "of another code", poll(second), 400, "authorization_pending")
		w.vote(t, request, api.Approve)
		if a := poll(code); a.status != 200 {
			t.Errorf("an early poll after the approval: got %d %s, want the token", a.status, a.text)
		}
	})
}

func TestPollIntervals(t *testing.T) {
	p, id, now := newPolls(), broker.NewRequestID(time.Now()), time.Now()
	for i, step := range []struct {
		after, interval time.Duration
		tooOften        bool
	}{
		{0, 5 * time.Second, false},
		{5 * time.Second, 5 * time.Second, false},
		{4 * time.Second, 5 * time.Second, false}, // networks are not exact
		{time.Second, 10 * time.Second, true},
		{5 * time.Second, 15 * time.Second, true},
		{15 * time.Second, 15 * time.Second, false},
		{0, 20 * time.Second, true},
	} {
		now = now.Add(step.after)
		if interval, tooOften := p.count(id, now); interval != step.interval || tooOften != step.tooOften {
			t.Errorf("poll %d: got %v, %t, want %v, %t", i, interval, tooOften, step.interval, step.tooOften)
		}
	}
	for range 100 {
		p.count(id, now)
	}
	if interval, _ := p.count(id, now); interval != longestPolls {
		t.Errorf("got the interval %v, want at most %v", interval, longestPolls)
	}
	for range 2 * maxRemembered {
		p.count(broker.NewRequestID(now), now)
	}
	if n := p.last.order.Len(); n != maxRemembered {
		t.Errorf("remembers %d codes, want %d", n, maxRemembered)
	}
}

// Codes have no rows: they work on another server that has the same seal keys, also after
// the first of them was replaced.
func TestCodesNeedNoRows(t *testing.T) {
	old, fresh := []byte(strings.Repeat("o", broker.SealKeySize)), []byte(strings.Repeat("f", broker.SealKeySize))
	before, err := broker.NewSealer(old)
	if err != nil {
		t.Fatal(err)
	}
	eachWay(t, func(t *testing.T, w *world, way waitingWay) {
		w.cfg.Sealer = before
		code, request := way.begin(w, agent, "")
		w.vote(t, request, api.Approve)
		if w.cfg.Sealer, err = broker.NewSealer(fresh); err != nil {
			t.Fatal(err)
		}
		wantError(t, "without the old key", way.poll(w, agent, code), 400, "invalid_grant")
		if w.cfg.Sealer, err = broker.NewSealer(fresh, old); err != nil {
			t.Fatal(err)
		}
		if a := way.poll(w, agent, code); a.status != 200 {
			t.Errorf("got %d %s, want the token", a.status, a.text)
		}
	})
}

// Codes that are not ones cost no read of the database and no row.
func TestBadCodesAreCheap(t *testing.T) {
	t.Parallel()
	const tries = 10_000
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.CallsPerSecond = 1e9
		c.Remembers = func(string) bool { return true }
	})
	handler, reads, records := w.Handler(OAuth), w.store.reads.Load(), w.store.Head().Size
	random := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for i := range tries {
		raw := make([]byte, random.IntN(120))
		for j := range raw {
			raw[j] = byte(random.Uint32())
		}
		way := waitingWays[i%len(waitingWays)]
		path, form := "/oauth2/token", way.form(base64.RawURLEncoding.EncodeToString(raw))
		r, answer := httptest.NewRequestWithContext(t.Context(), "POST", path, strings.NewReader(form)), httptest.NewRecorder()
		r.Host = "broker.acme.test:443"
		r.Header.Set("Authorization", "Bearer "+agent)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		handler.ServeHTTP(answer, r)
		if answer.Code == 400 {
			refused++
		}
	}
	if n := w.store.reads.Load() - reads; refused != tries || n != 0 || w.store.Head().Size != records || w.polls.last.order.Len() != 0 {
		t.Errorf("got %d refusals, %d reads of the database, want %d and 0", refused, n, tries)
	}
}
