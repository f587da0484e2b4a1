package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// must returns a function that returns the value of a call and fails the test on an
// error.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Every operation of the document succeeds when called with package api's client. The
// world validates each call and answer.
func TestEveryOperation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ctx, me := t.Context(), w.as(agent)

	who := must[*api.Identity](t)(me.WhoAmI(ctx))
	if who.ID != agent || who.Kind != "agent" || who.Team != "support" || !slices.Equal(who.Accountable, []string{"login/ana"}) {
		t.Errorf("whoami: %+v", who)
	}
	if root := must[*api.Identity](t)(w.as(operator).WhoAmI(ctx)); root.Kind != "operator" {
		t.Errorf("whoami on the admin socket: %+v", root)
	}
	offers := must[[]api.Offer](t)(me.Entitlements(ctx))
	if len(offers) == 0 {
		t.Error("got no entitlements")
	}

	filed := w.driveGrant(t)
	credential := w.driveOneCall(t)
	w.driveViews(t, filed, credential)
	w.driveOAuth(t)
	w.driveLog(t, credential)
	w.driveInventory(t)
	w.driveCalls(t)
	w.driveApprovals(t)
	w.driveSessions(t)
	w.driveRefused(t)
	w.driveAbandon(t)
	w.driveMemberships(t)
	w.driveOperator(t)
	w.driveSignals(t)
	w.driveSuppliers(t)
	w.driveCampaigns(t)

	slices.Sort(w.spec.seen.list)
	if got, want := slices.Compact(w.spec.seen.list), w.spec.operations(); !slices.Equal(got, want) {
		t.Errorf("succeeded: %q\nin the document: %q", got, want)
	}
	if strings.Contains(w.log.String(), "s3cret") {
		t.Error("an issued secret is in the log")
	}
}

// driveGrant files a request that policy approves, then collects, renews and returns
// the credential.
func (w *world) driveGrant(t *testing.T) (filed *api.Request) {
	ctx, me := t.Context(), w.as(agent)
	filed = must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, TTL: api.Duration(5 * time.Minute), Justification: "triage", Ticket: "T-1"}))
	if filed.Status != api.StatusApproved || filed.Grant == nil || filed.TTL.Std() != 5*time.Minute {
		t.Errorf("filed: got %+v", filed)
	}
	dry := must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, DryRun: true}))
	if dry.ID != "" || !dry.DryRun {
		t.Errorf("dry run: %+v", dry)
	}
	first := must[*api.Credential](t)(me.Collect(ctx, filed.ID))
	second := must[*api.Credential](t)(me.Renew(ctx, first.Lease))
	if second.Lease == first.Lease || second.Secret["token"] == "" {
		t.Errorf("renewed: %v", second)
	}
	ended := must[*api.Lease](t)(me.Revoke(ctx, second.Lease, "done"))
	if ended.Status != api.LeaseRevoked || ended.EndHow != "returned" {
		t.Errorf("returned: %+v", ended)
	}
	if l := must[*api.Lease](t)(me.Lease(ctx, first.Lease)); l.Status != api.LeaseRevoked || l.EndHow != "replaced" {
		t.Errorf("replaced: %+v", l)
	}
	return filed
}

// driveOneCall requests and collects in one call, with and without an approval.
func (w *world) driveOneCall(t *testing.T) *api.Credential {
	ctx, me := t.Context(), w.as(agent)
	credential, _, err := me.AskAndCollect(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}})
	if err != nil || credential.Type != "bearer" || credential.Revocation != "at_expiry" {
		t.Fatalf("collected: %v, %v", credential, err)
	}
	_, pending, err := me.AskAndCollect(ctx, api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: "incident"})
	if err != nil || pending == nil || pending.Status != api.StatusPending || len(pending.Approvals.Needed) != 1 || pending.Approvals.Needed[0].Count != 2 {
		t.Fatalf("pending: %+v, %v", pending, err)
	}
	if r := must[*api.Request](t)(me.Await(ctx, pending.ID, pending.Version, 10*time.Millisecond)); r.Status != api.StatusPending {
		t.Errorf("awaited: %+v", r)
	}
	if r := must[*api.Request](t)(me.Withdraw(ctx, pending.ID)); r.Status != api.StatusWithdrawn {
		t.Errorf("withdrawn: %+v", r)
	}
	return credential
}

// driveApprovals has people approve a request and review a break-glass use.
func (w *world) driveApprovals(t *testing.T) {
	ctx, me := t.Context(), w.as(agent)
	pending := must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, TTL: api.Duration(10 * time.Minute)}))
	yes := api.Vote{Decision: api.Approve, Digest: pending.Digest, Comment: "go on", TTL: api.Duration(5 * time.Minute)}
	if r := must[*api.Request](t)(w.as("login/ben").Vote(ctx, pending.ID, yes)); r.Status != api.StatusPending || r.Approvals.Needed[0].Have != 1 {
		t.Errorf("after one of two approvals: %+v", r.Approvals)
	}
	r := must[*api.Request](t)(w.as("login/cleo").Vote(ctx, pending.ID, yes))
	if r.Status != api.StatusApproved || r.Grant.TTL.Std() != 5*time.Minute || len(r.Approvals.Given) != 2 {
		t.Errorf("after two of two approvals: %+v", r)
	}
	c := must[*api.Credential](t)(me.Collect(ctx, pending.ID))
	if left := time.Until(c.ExpiresAt); left > 5*time.Minute {
		t.Errorf("narrowed to five minutes, but valid for %s", left)
	}
	if same := must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, TTL: api.Duration(10 * time.Minute)})); same.ID != pending.ID || !same.Reuse {
		t.Errorf("an identical ask: %+v", same)
	}
	emergency := must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, BreakGlass: true, Justification: "the shop is down"}))
	if emergency.Status != api.StatusApproved || emergency.Review == nil {
		t.Fatalf("break-glass: %+v", emergency)
	}
	found := api.Finding{Verdict: api.Justified, Digest: emergency.Digest, Comment: "it was down"}
	if r := must[*api.Request](t)(w.as("login/ben").Review(ctx, emergency.ID, found)); r.Review.ClosedAt.IsZero() {
		t.Errorf("reviewed: %+v", r.Review)
	}
}

// driveViews reads requests and leases, alone and in pages.
func (w *world) driveViews(t *testing.T, filed *api.Request, credential *api.Credential) {
	ctx, me := t.Context(), w.as(agent)
	if r := must[*api.Request](t)(me.Request(ctx, filed.ID)); r.Ticket != "T-1" || len(r.Decision.Policies) > 0 {
		t.Errorf("the requester sees the policies: %+v", r.Decision)
	}
	if r := must[*api.Request](t)(w.as(auditor).Request(ctx, filed.ID)); len(r.Decision.Policies) == 0 {
		t.Error("the auditor does not see the policies")
	}

	page := must[*api.RequestPage](t)(me.Requests(ctx, api.RequestFilter{Limit: 1}))
	next := must[*api.RequestPage](t)(me.Requests(ctx, api.RequestFilter{Limit: 1, Cursor: page.Next}))
	if len(page.Requests) != 1 || len(next.Requests) != 1 || page.Requests[0].ID <= next.Requests[0].ID {
		t.Errorf("pages: %+v, %+v", page, next)
	}
	if list := must[*api.RequestPage](t)(me.Requests(ctx, api.RequestFilter{Status: api.StatusWithdrawn})); len(list.Requests) != 1 {
		t.Errorf("withdrawn: %d requests", len(list.Requests))
	}
	leases := must[*api.LeasePage](t)(me.Leases(ctx, api.LeaseFilter{Live: true}))
	if len(leases.Leases) != 1 || leases.Leases[0].ID != credential.Lease {
		t.Errorf("live leases: %+v", leases)
	}
}

func (w *world) driveOAuth(t *testing.T) {
	ctx, me := t.Context(), w.as(agent)
	token := must[*api.TokenResponse](t)(me.Exchange(ctx, api.TokenRequest{SubjectToken: agent, Audience: "tickets", Scopes: []string{"tickets:read"}}))
	if token.IssuedTokenType != api.TokenTypeAccessToken || token.TokenType != "Bearer" || token.Scope != "tickets:read" || token.ExpiresIn < 590 || token.ExpiresIn > 600 {
		t.Errorf("exchanged: %+v", token)
	}
	for id, active := range map[string]bool{agent: true, tickets: true, other: false} {
		in := must[*api.Introspection](t)(w.as(id).Introspect(ctx, token.AccessToken))
		if in.Active != active || active && (in.ClientID != agent || in.Issuer != "https://broker.acme.test" || in.Scope != "tickets:read") {
			t.Errorf("introspection by %s: %+v", id, in)
		}
	}
	if err := w.as(other).RevokeToken(ctx, token.AccessToken); err != nil {
		t.Error(err)
	}
	if in := must[*api.Introspection](t)(me.Introspect(ctx, token.AccessToken)); !in.Active {
		t.Error("another identity revoked the token")
	}
	if err := me.RevokeToken(ctx, token.AccessToken); err != nil {
		t.Error(err)
	}
	if in := must[*api.Introspection](t)(w.as(tickets).Introspect(ctx, token.AccessToken)); in.Active {
		t.Error("the token is active after its revocation")
	}
	started := must[*api.BackchannelResponse](t)(api.Backchannel{Client: me}.Authorize(ctx, api.BackchannelRequest{TokenRequest: api.TokenRequest{Audience: "guarded", Scopes: []string{"read"}, BindingMessage: "4711"}, LoginHint: agent, Expiry: 60}))
	if _, err := me.Exchange(ctx, api.TokenRequest{AuthReqID: started.AuthReqID}); !errors.Is(err, api.Pending) {
		t.Errorf("polled: %v", err)
	}
	must[json.RawMessage](t)(me.JWKS(ctx))
	w.driveResource(t)
	if m := must[*api.Metadata](t)(me.Discovery(ctx)); m.Issuer != "https://broker.acme.test" || m.TokenEndpoint != "https://broker.acme.test/oauth2/token" {
		t.Errorf("metadata: %+v", m)
	}
	w.get(t, "/.well-known/oauth-authorization-server")
	lists := must[*api.StatusLists](t)(api.StatusListClient{Client: me}.All(ctx))
	if len(lists.Lists) != 1 {
		t.Fatalf("got the status lists %q, want one", lists.Lists)
	}
	must[[]byte](t)(api.StatusListClient{Client: me}.List(ctx, path.Base(lists.Lists[0])))
}

func (w *world) driveLog(t *testing.T, credential *api.Credential) {
	ctx := t.Context()
	must[[]byte](t)(w.as(agent).Checkpoint(ctx))
	record := must[*api.AuditRecord](t)(w.as(agent).AuditRecord(ctx, credential.Receipt.Index))
	if record.LeafHash != credential.Receipt.LeafHash || record.Proof == nil {
		t.Fatalf("got the record %+[2]v for the receipt %+[1]v", credential.Receipt, record)
	}
	// The offline verifier reads the published proof.
	text, err := json.Marshal(record.Proof)
	if err != nil {
		t.Fatal(err)
	}
	var proof audit.Proof
	if err := json.Unmarshal(text, &proof); err != nil {
		t.Fatal(err)
	}
	verified, err := proof.Verify(w.cfg.Log.(*logReader).public)
	if err != nil || verified.Kind != audit.LeaseIssued || verified.Caller.ID != agent {
		t.Errorf("verified: %+v, %v", verified, err)
	}
	must[*api.AuditRecord](t)(w.as(auditor).AuditRecord(ctx, credential.Receipt.Index))
	must[*api.AuditPage](t)(w.as(auditor).SearchAudit(ctx, api.AuditFilter{Kind: "lease"}))
	must[*api.StandingPage](t)(w.as(auditor).Standings(ctx, api.StandingFilter{Kind: "person"}))
	w.publish(t)
	must[*api.EvidenceReport](t)(w.as(auditor).Evidence(ctx, api.EvidenceQuery{Framework: "nist-csf-2.0"}))
	must[[]byte](t)(w.as(auditor).EvidenceMarkdown(ctx, api.EvidenceQuery{Framework: "nist-csf-2.0"}))
	for _, index := range []int64{credential.Receipt.Index, 1 << 40} {
		if _, err := w.as(other).AuditRecord(ctx, index); !errors.Is(err, api.NotFound) {
			t.Errorf("another identity reads record %d: %v", index, err)
		}
	}
}

// driveRefused requests a credential that the issuer refuses. The failed lease stays
// visible.
func (w *world) driveRefused(t *testing.T) {
	ctx, me := t.Context(), w.as(agent)
	if _, _, err := me.AskAndCollect(ctx, api.Ask{Entitlement: "refused"}); !errors.Is(err, api.IssuerRefused) {
		t.Errorf("got %v, want a refusal by the issuer", err)
	}
	page := must[*api.LeasePage](t)(me.Leases(ctx, api.LeaseFilter{Entitlement: "refused"}))
	if len(page.Leases) != 1 || page.Leases[0].Status != api.LeaseFailed || page.Leases[0].EndHow != "failed" {
		t.Errorf("got the leases %+v, want a failed one", page.Leases)
	}
}

// driveAbandon abandons a lease whose issuer is gone. Only an operator can, and only
// after an attempt to revoke it.
func (w *world) driveAbandon(t *testing.T) {
	ctx, op := t.Context(), w.as(operator)
	credential, _, err := w.as(agent).AskAndCollect(ctx, api.Ask{Entitlement: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := op.Abandon(ctx, credential.Lease, "too early"); !errors.Is(err, api.InvalidRequest) {
		t.Errorf("abandoning before an attempt to revoke: %v", err)
	}
	if l := must[*api.Lease](t)(w.as(agent).Revoke(ctx, credential.Lease, "done")); l.Status != api.LeaseRevoking || l.Revocation != "pending" {
		t.Errorf("returned without an issuer: %+v", l)
	}
	if _, err := w.as(agent).Abandon(ctx, credential.Lease, "why not"); !errors.Is(err, api.Denied) {
		t.Errorf("abandoned by the holder: %v", err)
	}
	if _, err := op.Abandon(ctx, credential.Lease, " "); !errors.Is(err, api.InvalidRequest) {
		t.Errorf("abandoned without a reason: %v", err)
	}
	if l := must[*api.Lease](t)(op.Abandon(ctx, credential.Lease, "the cluster was deleted")); l.Status != api.LeaseAbandoned || l.Revocation == "immediate" {
		t.Errorf("abandoned: %+v", l)
	}
}

func (w *world) driveOperator(t *testing.T) {
	ctx, op := t.Context(), w.as(operator)
	selector := api.Selector{Holder: agent}
	preview := must[*api.KillPreview](t)(op.Kill(ctx, api.Kill{Selector: selector, Preview: true}))
	if preview.Leases == 0 {
		t.Errorf("preview: %+v", preview)
	}
	if _, err := op.Kill(ctx, api.Kill{Selector: selector, Reason: "incident", PreviewDigest: strings.Repeat("0", 64)}); !errors.Is(err, api.PreviewStale) {
		t.Errorf("kill with another digest: %v", err)
	}
	if _, err := w.as(agent).Kill(ctx, api.Kill{Selector: selector, Reason: "incident", Force: true}); !errors.Is(err, api.Denied) {
		t.Errorf("kill by a workload: %v", err)
	}
	must[*api.KillPreview](t)(op.Kill(ctx, api.Kill{Selector: selector, Reason: "incident", PreviewDigest: preview.Digest}))
	if _, _, err := w.as(agent).AskAndCollect(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}}); !errors.Is(err, api.Blocked) {
		t.Errorf("after the kill: %v", err)
	}
	for _, err := range []error{
		op.Block(ctx, api.BlockChange{Selector: selector, Reason: "again"}),
		op.Lift(ctx, api.BlockChange{Selector: selector, Reason: "over"}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	must[[]api.Block](t)(op.Blocks(ctx))
	w.get(t, "/openapi.json")
	w.get(t, "/healthz")
	if ready := must[*api.Readiness](t)(op.Ready(ctx)); !ready.Ready {
		t.Errorf("ready: %+v", ready)
	}
}

// get makes a call without a proof.
func (w *world) get(t *testing.T, path string) string {
	t.Helper()
	resp := w.do(http.MethodGet, path, "", "")
	body := w.body(resp)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s %s", path, resp.Status, body)
	}
	return string(body)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx, me := t.Context(), w.as(agent)
	ask := func(a api.Ask) error { _, err := me.Ask(ctx, a); return err }
	tests := []struct {
		name   string
		err    error
		code   api.Code
		status int
	}{
		{"no proof", func() error { _, err := w.as("nobody").WhoAmI(ctx); return err }(), api.Unauthenticated, 401},
		{"unknown entitlement", ask(api.Ask{Entitlement: "nope"}), api.Denied, 403},
		{"too much", ask(api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}}), api.Denied, 403},
		{"no such scope", ask(api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:burn"}}), api.InvalidScope, 400},
		{"no scopes", ask(api.Ask{Entitlement: "tickets"}), api.InvalidScope, 400},
		{"ttl too long", ask(api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, TTL: api.Duration(time.Hour)}), api.InvalidTTL, 400},
		{"unknown parameter", ask(api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Parameters: map[string]string{"a": "b"}}), api.InvalidParameter, 400},
		{"another's subject_token", ask(api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, SubjectToken: other}), api.TwoIdentities, 400},
		{"no such request", func() error { _, err := me.Request(ctx, "req_x"); return err }(), api.NotFound, 404},
		{"no such lease", func() error { _, err := me.Lease(ctx, broker.NewLeaseID(time.Now()).String()); return err }(), api.NotFound, 404},
	}
	for _, test := range tests {
		var e *api.Error
		if !errors.As(test.err, &e) || e.Code != test.code || e.Status != test.status || e.Detail == "" || e.Instance == "" {
			t.Errorf("%s: got %#v (%v), want %d %s", test.name, e, test.err, test.status, test.code)
		}
	}
	var e *api.Error
	if err := ask(api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read", "tickets:close"}}); !errors.As(err, &e) ||
		e.Allowed == nil || !slices.Equal(e.Allowed.Scopes, []string{"tickets:read"}) || e.DeniedBy != "policy" {
		t.Errorf("the refusal does not list what is allowed: %#v", e)
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const body = `{"entitlement":"tickets","scopes":["tickets:read"]}`
	call := func(who, key, body string) (int, api.Credential, api.Problem) {
		resp := w.do("POST", "/v1/credentials", "application/json", body, "Authorization", "Bearer "+who, "Idempotency-Key", key)
		text := w.body(resp)
		var c api.Credential
		var p api.Problem
		if err := errors.Join(json.Unmarshal(text, &c), json.Unmarshal(text, &p)); err != nil {
			t.Error(err)
		}
		return resp.StatusCode, c, p
	}
	_, first, _ := call(agent, "k", body)
	status, second, _ := call(agent, "k", body)
	if status != 201 || second.Request != first.Request || second.Lease == first.Lease {
		t.Errorf("repeated: %d, %+v after %+v", status, second, first)
	}
	if l, err := w.as(agent).Lease(t.Context(), first.Lease); err != nil || l.Status != api.LeaseRevoked {
		t.Errorf("the lease of the first call: %+v, %v", l, err)
	}
	if status, _, p := call(agent, "k", `{"entitlement":"tickets","scopes":["tickets:read"],"ttl":"1m"}`); status != 422 || p.Code != api.IdempotencyKeyReused {
		t.Errorf("another body: %d %+v", status, p)
	}
	if status, c, _ := call(agent+"/2", "k", body); status != 201 || c.Request == first.Request {
		t.Errorf("the same key of another caller: %d %+v", status, c)
	}
	for _, key := range []string{"", strings.Repeat("k", 129), "k\u00e9"} {
		if status, _, p := call(agent, key, body); status != 400 {
			t.Errorf("the key %q: %d %+v", key, status, p)
		}
	}
}
