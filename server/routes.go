package server

import (
	"bytes"
	"net/http"
	"slices"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// A route is one endpoint. Its run function is called only for authenticated
// callers, unless the route is open.
type route struct {
	audience Audience // "": every listener serves it
	method   string
	path     string // a pattern of http.ServeMux
	open     bool
	shared   bool // scripts of any web page may read it (CORS)
	form     bool // its body is the form of a page
	script   bool // a page's script calls it: errors are JSON, not pages
	scans    bool // it reads many rows and has a limit of its own
	health   bool // health checks of load balancers call it
	dpop     bool // its calls may prove the possession of a key (RFC 9449)
	// introspects: resource servers call it for all of their clients and have limits of
	// their own.
	introspects bool
	foreign     bool     // a Handler: it reads its query and body and may authenticate late
	handler     *Handler // of a foreign route
	query       []string // the accepted query parameters

	// proofs, on routes with a form, returns the caller's own tokens in the form.
	proofs func(form) (formProofs, error)

	run func(*Server, *call) (reply, error)
}

func (rt route) isFor(audiences []Audience) bool {
	return rt.audience == "" || slices.Contains(audiences, rt.audience)
}

// routes returns all endpoints. The OpenAPI document has exactly these.
func (s *Server) routes() []route {
	const get, post = http.MethodGet, http.MethodPost
	list := []route{
		{audience: API, method: post, path: "/v1/requests", dpop: true, run: withBody((*Server).ask)},
		{audience: API, method: get, path: "/v1/requests", scans: true, query: []string{"status", "requester", "on_behalf_of", "entitlement", "team", "risk", "q", "inbox", "order", "cursor", "limit"}, run: (*Server).listRequests},
		{audience: API, method: get, path: "/v1/requests/{id}", query: []string{"wait", "after"}, run: (*Server).getRequest},
		{audience: API, method: post, path: "/v1/requests/{id}/withdraw", run: withBody((*Server).withdraw)},
		{audience: API, method: post, path: "/v1/requests/{id}/approvals", run: withBody((*Server).vote)},
		{audience: API, method: post, path: "/v1/requests/{id}/review", run: withBody((*Server).review)},
		{audience: API, method: post, path: "/v1/requests/{id}/credentials", dpop: true, run: withBody((*Server).collect)},
		{audience: API, method: post, path: "/v1/credentials", dpop: true, run: withBody((*Server).askAndCollect)},
		{audience: API, method: get, path: "/v1/leases", scans: true, query: []string{"holder", "entitlement", "request", "live", "cursor", "limit"}, run: (*Server).listLeases},
		{audience: API, method: get, path: "/v1/leases/{id}", run: (*Server).getLease},
		{audience: API, method: post, path: "/v1/leases/{id}/renew", dpop: true, run: withBody((*Server).renew)},
		{audience: API, method: post, path: "/v1/leases/{id}/revoke", run: withBody((*Server).revokeLease)},
		{audience: API, method: post, path: "/v1/leases/{id}/calls", run: withBody((*Server).reportCalls)},
		{audience: API, method: post, path: "/v1/leases/{id}/abandon", run: withBody((*Server).abandonLease)},
		{audience: API, method: get, path: "/v1/memberships", scans: true, query: []string{"holder", "issuer", "differs", "cursor", "limit"}, run: (*Server).listMemberships},
		{audience: API, method: post, path: "/v1/memberships/{id}/accept", run: withBody((*Server).acceptMembership)},
		{audience: API, method: get, path: "/v1/entitlements", run: (*Server).entitlements},
		{audience: API, method: get, path: "/v1/whoami", run: (*Server).whoami},
		{audience: API, method: post, path: "/v1/revocations", run: withBody((*Server).kill)},
		{audience: API, method: get, path: "/v1/blocks", run: (*Server).listBlocks},
		{audience: API, method: post, path: "/v1/blocks", run: withBody((*Server).placeBlock)},
		{audience: API, method: http.MethodDelete, path: "/v1/blocks", run: withBody((*Server).liftBlock)},
		{audience: API, method: get, path: "/v1/signals", run: (*Server).listTransmitters},
		{audience: API, method: get, path: "/v1/signals/{transmitter}", run: (*Server).heldEvents},
		{audience: API, method: post, path: "/v1/signals/{transmitter}", run: withBody((*Server).decideEvents)},
		{audience: API, method: post, path: "/v1/signals/{transmitter}/clear", run: withBody((*Server).clearStatement)},
		{audience: API, method: post, path: "/v1/sessions", open: true, run: withBody((*Server).openSession)},
		{audience: API, method: http.MethodDelete, path: "/v1/sessions", run: withBody((*Server).closeSession)},
		{audience: API, method: post, path: "/v1/sessions/device", open: true, run: withBody((*Server).beginDevice)},
		{audience: API, method: get, path: "/v1/audit", scans: true, query: []string{"kind", "who", "entitlement", "q", "from", "to", "cursor", "limit"}, run: (*Server).searchAudit},
		{audience: API, method: get, path: "/v1/facts", query: []string{"kind", "name", "cursor", "limit"}, run: (*Server).listFacts},
		{audience: API, method: get, path: "/v1/suppliers", scans: true, run: (*Server).listSuppliers},
		{audience: API, method: get, path: "/v1/suppliers/{name}", run: (*Server).getSupplier},
		{audience: API, method: post, path: "/v1/suppliers/{name}/extensions", run: withBody((*Server).askExtension)},
		{audience: API, method: post, path: "/v1/suppliers/{name}/extensions/{id}", run: withBody((*Server).decideExtension)},
		{audience: API, method: get, path: "/v1/assessments", scans: true, run: (*Server).listAssessments},
		{audience: API, method: post, path: "/v1/assessments", run: withBody((*Server).assess)},
		{audience: API, method: get, path: "/v1/audit/{index}", run: (*Server).auditRecord},
		{audience: API, method: get, path: "/v1/evidence", scans: true, query: []string{"framework", "since", "from", "to", "size", "format"}, run: (*Server).evidenceReport},
		{audience: API, method: get, path: "/v1/identities", scans: true, query: identityParameters, run: (*Server).listIdentities},
		{audience: API, method: get, path: "/v1/identities.csv", scans: true, query: identityParameters, run: (*Server).exportIdentities},
		{audience: API, method: get, path: "/v1/identity", query: []string{"id"}, run: (*Server).getIdentity},
		{audience: API, method: get, path: "/v1/campaigns", scans: true, query: []string{"cursor", "limit"}, run: reviewing((*Server).listCampaigns)},
		{audience: API, method: post, path: "/v1/campaigns", run: reviewing(withBody((*Server).startCampaign))},
		{audience: API, method: get, path: "/v1/campaigns/{id}", run: reviewing((*Server).getCampaign)},
		{audience: API, method: get, path: "/v1/campaigns/{id}/items", scans: true, query: []string{"status", "mine", "cursor", "limit"}, run: reviewing((*Server).listReviewItems)},
		{audience: API, method: get, path: "/v1/campaigns/{id}/items/{item}", run: reviewing((*Server).getReviewItem)},
		{audience: API, method: post, path: "/v1/campaigns/{id}/items/{item}/decision", run: reviewing(withBody((*Server).decideReviewItem))},
		{audience: API, method: post, path: "/v1/campaigns/{id}/items/{item}/restore", run: reviewing(withBody((*Server).restoreReviewItem))},
		{audience: API, method: post, path: "/v1/campaigns/{id}/keep", run: reviewing(withBody((*Server).keepReviewItems))},
		{audience: API, method: get, path: "/v1/campaigns/{id}/patch", scans: true, run: reviewing((*Server).reviewPatch)},
		{audience: API, method: get, path: "/v1/policy/unused", scans: true, query: []string{"since"}, run: (*Server).unused},

		{audience: OAuth, method: post, path: "/oauth2/token", dpop: true, proofs: tokenProofs, run: (*Server).token},
		{audience: OAuth, method: post, path: backchannelPath, dpop: true, proofs: assertionProofs, run: (*Server).backchannel},
		{audience: OAuth, method: post, path: "/oauth2/introspect", dpop: true, introspects: true, proofs: assertionProofs, run: (*Server).introspect},
		{audience: OAuth, method: post, path: "/oauth2/revoke", dpop: true, proofs: assertionProofs, run: (*Server).revokeToken},
		{audience: OAuth, method: get, path: "/oauth2/jwks", open: true, shared: true, run: (*Server).jwks},
		{audience: OAuth, method: get, path: "/oauth2/status", open: true, shared: true, run: (*Server).statusLists},
		{audience: OAuth, method: get, path: "/oauth2/status/{list}", open: true, shared: true, run: (*Server).statusList},
		{audience: OAuth, method: get, path: "/.well-known/openid-configuration", open: true, shared: true, run: (*Server).metadata},
		{audience: OAuth, method: get, path: "/.well-known/oauth-authorization-server", open: true, shared: true, run: (*Server).metadata},

		{audience: MCP, method: get, path: metadataPath + mcpPath, open: true, shared: true, run: (*Server).resourceMetadata},

		{audience: Log, method: get, path: "/log/checkpoint", open: true, run: (*Server).checkpoint},

		{method: get, path: "/openapi.json", open: true, shared: true, run: (*Server).openAPI},
		{method: get, path: "/healthz", open: true, health: true, run: (*Server).healthz},
		{method: get, path: "/readyz", open: true, health: true, run: (*Server).readyz},
	}
	return slices.Concat(list, pages, s.insertedRoutes())
}

// insertedRoutes are the routes of metadata whose path is followed by that of the external
// URL (RFC 8414, section 3.1; RFC 9728, section 3.1).
func (s *Server) insertedRoutes() []route {
	if s.external.Path == "" {
		return nil
	}
	return []route{
		{audience: OAuth, method: http.MethodGet, path: "/.well-known/oauth-authorization-server" + s.external.Path, open: true, shared: true, run: (*Server).metadata},
		{audience: MCP, method: http.MethodGet, path: metadataPath + s.external.Path + mcpPath, open: true, shared: true, run: (*Server).resourceMetadata},
	}
}

// pages are the routes for browsers. They are not part of the OpenAPI document.
var pages = []route{
	{audience: UI, method: http.MethodGet, path: "/{$}", open: true, run: (*Server).home},
	{audience: UI, method: http.MethodGet, path: "/ui/{$}", run: (*Server).inbox},
	{audience: UI, method: http.MethodGet, path: "/ui/events", open: true, run: (*Server).events},
	{audience: UI, method: http.MethodGet, path: "/ui/inbox/changes", script: true, run: (*Server).inboxChanged},
	{audience: UI, method: http.MethodGet, path: "/ui/requests/{id}", run: (*Server).requestPage},
	{audience: UI, method: http.MethodPost, path: "/ui/requests/{id}", form: true, run: (*Server).decideRequest},
	{audience: UI, method: http.MethodGet, path: "/ui/requests/{id}/alike", run: (*Server).alike},
	{audience: UI, method: http.MethodPost, path: "/ui/requests/{id}/alike", form: true, run: (*Server).decideAlike},
	{audience: UI, method: http.MethodPost, path: "/ui/requests/{id}/sign", form: true, script: true, run: (*Server).signDecision},
	{audience: UI, method: http.MethodGet, path: "/ui/requests/{id}/log", scans: true, run: (*Server).timelinePage},
	{audience: UI, method: http.MethodGet, path: "/ui/access", scans: true, run: (*Server).access},
	{audience: UI, method: http.MethodGet, path: "/ui/entitlements", run: (*Server).offersPage},
	{audience: UI, method: http.MethodGet, path: "/ui/entitlements/{name}", run: (*Server).askPage},
	{audience: UI, method: http.MethodPost, path: "/ui/entitlements/{name}", form: true, run: (*Server).fileAsk},
	{audience: UI, method: http.MethodGet, path: "/ui/leases", scans: true, run: (*Server).leasesPage},
	{audience: UI, method: http.MethodPost, path: "/ui/leases/{id}", form: true, run: (*Server).endLeasePage},
	{audience: UI, method: http.MethodGet, path: "/ui/memberships", scans: true, run: (*Server).membershipsPage},
	{audience: UI, method: http.MethodPost, path: "/ui/memberships/{id}", form: true, run: (*Server).acceptOnPage},
	{audience: UI, method: http.MethodGet, path: "/ui/kill", scans: true, run: (*Server).killFormPage},
	{audience: UI, method: http.MethodPost, path: "/ui/kill", form: true, run: (*Server).useKillSwitch},
	{audience: UI, method: http.MethodGet, path: "/ui/signals", run: (*Server).signalsPage},
	{audience: UI, method: http.MethodGet, path: "/ui/signals/{transmitter}", run: (*Server).heldPage},
	{audience: UI, method: http.MethodPost, path: "/ui/signals/{transmitter}", form: true, run: (*Server).decideHeld},
	{audience: UI, method: http.MethodGet, path: "/ui/overview", scans: true, run: (*Server).overviewPage},
	{audience: UI, method: http.MethodGet, path: "/ui/identities", scans: true, run: (*Server).identitiesPage},
	{audience: UI, method: http.MethodGet, path: "/ui/identities.csv", scans: true, run: (*Server).identitiesFile},
	{audience: UI, method: http.MethodGet, path: "/ui/identity", run: (*Server).oneIdentityPage},
	{audience: UI, method: http.MethodGet, path: "/ui/audit", scans: true, run: (*Server).auditPage},
	{audience: UI, method: http.MethodGet, path: "/ui/audit/{index}", run: (*Server).recordPage},
	{audience: UI, method: http.MethodGet, path: "/ui/evidence", scans: true, run: (*Server).evidencePage},
	{audience: UI, method: http.MethodGet, path: "/ui/assessments", scans: true, run: (*Server).suppliersPage},
	{audience: UI, method: http.MethodGet, path: "/ui/assessments/{name}", run: (*Server).supplierPage},
	{audience: UI, method: http.MethodPost, path: "/ui/assessments/{name}", form: true, run: (*Server).changeSupplier},
	{audience: UI, method: http.MethodPost, path: "/ui/assessments/{name}/sign", form: true, script: true, run: (*Server).signAssessment},
	{audience: UI, method: http.MethodGet, path: "/ui/campaigns", scans: true, run: reviewing((*Server).campaignsPage)},
	{audience: UI, method: http.MethodPost, path: "/ui/campaigns", form: true, run: reviewing((*Server).startOnPage)},
	{audience: UI, method: http.MethodGet, path: "/ui/campaigns/{id}", scans: true, run: reviewing((*Server).campaignPage)},
	{audience: UI, method: http.MethodPost, path: "/ui/campaigns/{id}", form: true, run: reviewing((*Server).keepOnPage)},
	{audience: UI, method: http.MethodGet, path: "/ui/campaigns/{id}/items/{item}", run: reviewing((*Server).reviewItemPage)},
	{audience: UI, method: http.MethodPost, path: "/ui/campaigns/{id}/items/{item}", form: true, run: reviewing((*Server).decideOnPage)},
	{audience: UI, method: http.MethodPost, path: "/ui/campaigns/{id}/items/{item}/sign", form: true, script: true, run: reviewing((*Server).signReview)},
	{audience: UI, method: http.MethodGet, path: "/ui/passkeys", run: (*Server).passkeysPage},
	{audience: UI, method: http.MethodPost, path: "/ui/passkeys", form: true, run: (*Server).changePasskeys},
	{audience: UI, method: http.MethodPost, path: "/ui/passkeys/options", form: true, script: true, run: (*Server).enrolOptions},
	{audience: UI, method: http.MethodGet, path: "/ui/vouch", run: (*Server).vouchPage},
	{audience: UI, method: http.MethodPost, path: "/ui/vouch", form: true, run: (*Server).vouch},
	{audience: UI, method: http.MethodPost, path: "/ui/vouch/sign", form: true, script: true, run: (*Server).signVouch},
	{audience: UI, method: http.MethodGet, path: "/ui/login", open: true, run: (*Server).login},
	{audience: UI, method: http.MethodGet, path: "/ui/login/callback", open: true, run: (*Server).callback},
	{audience: UI, method: http.MethodGet, path: "/ui/login/{provider}/callback", open: true, run: (*Server).callback},
	{audience: UI, method: http.MethodPost, path: "/ui/login/{provider}/logged-out", open: true, form: true, run: (*Server).backChannelLogout},
	{audience: UI, method: http.MethodPost, path: "/ui/logout", open: true, form: true, run: (*Server).logout},
	{audience: UI, method: http.MethodGet, path: "/ui/terminal", run: (*Server).terminal},
	{audience: UI, method: http.MethodPost, path: "/ui/terminal", form: true, run: (*Server).decideTerminal},
	{audience: UI, method: http.MethodGet, path: "/ui/device", run: (*Server).device},
	{audience: UI, method: http.MethodPost, path: "/ui/device", form: true, run: (*Server).decideDevice},
	{audience: UI, method: http.MethodGet, path: "/ui/static/{file}", open: true, run: (*Server).staticFile},
}

// withBody reads a route's JSON body. An empty body is an empty object; the domain
// checks what is required.
func withBody[T any](f func(*Server, *call, T) (reply, error)) func(*Server, *call) (reply, error) {
	return func(s *Server, c *call) (reply, error) {
		var body T
		if err := c.readBody("application/json"); err != nil {
			return reply{}, err
		}
		if err := c.arrived(); err != nil {
			return reply{}, err
		}
		if len(bytes.TrimSpace(c.body)) > 0 {
			if err := decodeJSON(c.body, &body); err != nil {
				return reply{}, err
			}
		}
		return f(s, c, body)
	}
}

// nothing is the body of calls without parameters.
type nothing struct{}

// idempotencyKey returns the key of the call by its Idempotency-Key header; zero
// without one.
func (c *call) idempotencyKey() (broker.IdempotencyKey, error) {
	keys := c.r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return broker.IdempotencyKey{}, nil
	}
	if len(keys) > 1 || keys[0] == "" || len(keys[0]) > 128 || !printable(keys[0]) {
		return broker.IdempotencyKey{}, refuse(broker.ErrInvalidRequest, "Idempotency-Key is one key of 1 to 128 printable characters")
	}
	return broker.NewIdempotencyKey(c.who.ID, c.r.Method, c.r.URL.Path, keys[0], c.body), nil
}

// created returns a 201 reply with a Location.
func (c *call) created(path string, body any) (reply, error) {
	header := http.Header{}
	if path != "" {
		header.Set("Location", c.s.url(path))
	}
	return reply{status: http.StatusCreated, body: body, header: header}, nil
}

// url returns the external URL of a path.
func (s *Server) url(path string) string { return s.external.String() + path }

// pageURL returns the external URL of a page.
func (s *Server) pageURL(path string) string { return s.pages.String() + path }

func (s *Server) whoami(c *call) (reply, error) {
	who := s.cfg.Broker.Rules().WithLabels(c.who)
	blocked, err := s.cfg.Broker.Blocked(c.r.Context(), broker.Self(who, c.now))
	if err != nil {
		return reply{}, err
	}
	out := toIdentity(who)
	out.Blocked = blocked
	return ok(out)
}

func toIdentity(who broker.Identity) api.Identity {
	return api.Identity{
		ID: who.ID, Kind: string(who.Kind), Attested: string(who.Attested), TrustDomain: who.TrustDomain, Team: who.Team, Accountable: who.Accountable, Accounts: who.Accounts,
		Marks: api.Marks{Purpose: who.Purpose, Model: who.Model, Ceiling: toCeiling(who.Ceiling)}, EndsAt: utc(who.Ends),
		Proof: api.Proof{Method: string(who.Proof.Method), ExpiresAt: who.Proof.Expires.UTC()},
	}
}
