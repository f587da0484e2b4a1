package service

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/attest/dpop"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/mcp"
	"accessbroker.internal/server"
)

// mcpService authenticates the callers of the MCP endpoint. It is the resource server of
// the endpoint: a caller proves its identity with an X.509-SVID, or with an access token
// whose only audience is the URL of the endpoint.
type mcpService struct {
	s        *Service
	resource string        // the URL of the endpoint, the audience of its tokens
	tokens   *token.Issuer // of that audience
}

// mcpPath is the path of the endpoint below the external URL.
const mcpPath = "/mcp"

// MCPTools are tools that a program adds to the MCP endpoint.
type MCPTools struct {
	Configure func(*mcp.SDKOptions)
	Extend    func(*mcp.SDK)
	Tasks     mcp.Tasks
}

// mcpHandlers returns the handler of the MCP endpoint.
func (s *Service) mcpHandlers() []server.Handler {
	issuer := s.config.ExternalURL.String()
	m := &mcpService{s: s, resource: issuer + mcpPath}
	m.tokens = token.New(issuer, m.resource, s.keys)
	stateKey, err := hkdf.Key(sha256.New, s.config.SealKeys[0], nil, "access broker: state of MCP calls", sha256.Size)
	if err != nil {
		panic(err) // never: the key and its length are valid
	}
	more := s.options.MCP
	tools := mcp.New(mcp.Config{Version: ReadBuild().Version, Logger: s.log, StateKey: stateKey, Configure: more.Configure, Extend: more.Extend, Tasks: more.Tasks})
	return []server.Handler{{
		Pattern: mcpPath, Audience: server.MCP, Authenticate: m.authenticate, Remembers: s.keys.Remembers,
		Resource: &server.Resource{Name: "Access Broker", Scopes: mcp.Scopes, First: []string{mcp.ScopeList}, Providers: m.providers(), DPoP: dpop.Algorithms()},
		Handler: m.spend(&mcp.Gate{
			Next:   tools.Handler(mcpCaller),
			Scopes: mcpScopes,
			Lacks: func(w http.ResponseWriter, r *http.Request, needs []string) {
				server.WriteError(w, r, server.InsufficientScope(needs))
			},
			Fail: server.WriteError,
		}),
	}}
}

// providers returns the issuers of people's tokens.
func (m *mcpService) providers() []string {
	if m.s.people == nil {
		return nil
	}
	return m.s.people.Issuers()
}

// mcpCaller returns the broker as the caller of a request uses it.
func mcpCaller(r *http.Request) mcp.Broker {
	d, err := server.DirectOf(r)
	if err != nil {
		return nil // the proof expired while the body arrived
	}
	return d
}

// An mcpGrant is what the proofs of a call allow.
type mcpGrant struct {
	whole  bool // a certificate alone is not bounded by scopes
	scopes []string
	proof  dpop.Proof // of the key that the token is bound to; zero: it is bound to none
}

// spend refuses a proof of possession that was used before. It runs once the caller is
// admitted.
func (m *mcpService) spend(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if grant, ok := server.Attached(r).(mcpGrant); ok && !grant.proof.Key.IsZero() {
			err := m.s.dpop.Spend(grant.proof, time.Now())
			if err == nil && m.s.shared { // another replica may have seen it
				err = broker.SpendProof(r.Context(), m.s.store, grant.proof.Once, grant.proof.Until)
			}
			if err != nil {
				server.WriteError(w, r, err)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// mcpScopes returns the scopes of a call: none if its grant is unknown.
func mcpScopes(r *http.Request) (scopes []string, bounded bool) {
	grant, _ := server.Attached(r).(mcpGrant)
	return grant.scopes, !grant.whole
}

// authenticate identifies the caller of a call. A call with both a certificate and a
// token must prove one identity, with the scopes of the token.
func (m *mcpService) authenticate(r *http.Request) (who broker.Identity, err error) {
	var certified broker.Identity
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		alone := r.Clone(r.Context())
		alone.Header.Del("Authorization")
		if certified, err = m.s.verifier.Authenticate(alone); err != nil {
			return who, err
		}
	}
	values := r.Header.Values("Authorization")
	switch {
	case len(values) > 1:
		return who, unproven("the request has several Authorization headers: send one")
	case len(values) == 0 && certified.ID == "":
		return who, unproven("connect with an X.509-SVID, or send an access token whose audience is " + m.resource + ": " + m.howToExchange())
	case len(values) == 0:
		server.Attach(r, mcpGrant{whole: true})
		return certified, nil
	}
	t, proof, err := m.present(r, values[0])
	if err != nil {
		return who, err
	}
	if certified.ID != "" {
		t.Certificate = certified.Proof.SHA256
	}
	who, grant, err := m.bearer(r, t, certified)
	switch {
	case err != nil:
		return broker.Identity{}, err
	case certified.ID != "" && certified.ID != who.ID:
		return broker.Identity{}, &broker.Refusal{Err: broker.ErrTwoIdentities, Detail: "the certificate and the access token are of different identities: send the token over a connection of its own"}
	case certified.ID != "":
		who = who.With(certified)
	}
	grant.proof = proof
	server.Attach(r, grant)
	return who, nil
}

func (m *mcpService) howToExchange() string {
	return "get one at " + m.s.config.ExternalURL.String() + "/oauth2/token with resource=" + m.resource
}

func unproven(detail string) error {
	return &broker.Refusal{Err: broker.ErrUnauthenticated, Detail: detail}
}

// present reads the token of a call, and the proof of a key for it. With the
// scheme DPoP, the call needs a proof that names the token (RFC 9449, section 7.1).
func (m *mcpService) present(r *http.Request, header string) (t attest.PersonalToken, proof dpop.Proof, err error) {
	scheme, text, ok := strings.Cut(header, " ")
	byKey := strings.EqualFold(scheme, "DPoP")
	if !ok || !byKey && !strings.EqualFold(scheme, "Bearer") || text == "" || strings.ContainsAny(text, " \t,") {
		return t, proof, unproven("the Authorization header must be: Bearer <access token>, or DPoP <access token> with a proof")
	}
	t = attest.PersonalToken{Audience: m.resource, SubjectToken: broker.SubjectToken{Token: text, At: time.Now()}}
	if !byKey {
		return t, proof, nil
	}
	proof, err = m.s.dpop.Verify(r, t.At)
	switch {
	case err != nil:
		return t, proof, err
	case proof.Key.IsZero():
		return t, proof, &broker.Refusal{Err: broker.ErrInvalidDPoP, Detail: "the scheme DPoP needs a proof in the DPoP header"}
	case !proof.Names(text):
		return t, proof, &broker.Refusal{Err: broker.ErrInvalidDPoP, Detail: "the ath of the DPoP proof is missing or of another token"}
	}
	t.Key = proof.Key
	return t, proof, nil
}

// bearer returns the identity of a caller with a token: of a person with one of their
// provider, otherwise of the workload to which the broker issued it.
func (m *mcpService) bearer(r *http.Request, t attest.PersonalToken, certified broker.Identity) (who broker.Identity, grant mcpGrant, err error) {
	if m.s.people == nil || !m.s.people.Issues(t.Token) || m.s.workloads.Issues(t.Token) {
		return m.holder(r.Context(), &t.SubjectToken, certified)
	}
	who, grant.scopes, err = m.s.people.AccessToken(r.Context(), t)
	if err == nil {
		err = m.s.followDirectory(r.Context())
	}
	if err == nil && who.Person.StatesEnd {
		err = m.s.broker.Facts.StateClaims(r.Context(), who, t.At)
	}
	return who, grant, err
}

// holder returns the identity that a token of the broker was issued to. The token must be
// active, of the audience of the endpoint, and bound to nothing that this call does not
// prove (RFC 8705, section 3).
func (m *mcpService) holder(ctx context.Context, t *broker.SubjectToken, certified broker.Identity) (who broker.Identity, grant mcpGrant, err error) {
	l, err := broker.Accept(ctx, m.s.broker, m.tokens, t.Token, t.At)
	switch {
	case err != nil:
		return who, grant, err
	case l == nil && attest.IsJWTSVID(t.Token):
		return who, grant, unproven("a JWT-SVID is not an access token: " + m.howToExchange() + ", and send that")
	case l == nil && m.s.workloads.Issues(t.Token):
		return who, grant, unproven("an OIDC token of a workload is not an access token: " + m.howToExchange() + ", and send that")
	case l == nil:
		return who, grant, unproven("this is no access token for " + m.resource + ", or it is not active: " + m.howToExchange())
	case l.KeyThumbprint.IsZero() && !t.Key.IsZero():
		return who, grant, unproven("the access token is not bound to a DPoP key: send it as Bearer")
	case l.KeyThumbprint != t.Key:
		return who, grant, unproven("the access token is bound to a DPoP key: send it with the scheme DPoP and a proof of that key")
	case !l.Confirm.IsZero() && certified.ID != l.Holder: // the SPIFFE ID survives a rotation of the certificate
		return who, grant, unproven("the access token is bound to a client certificate: connect with the X.509-SVID of its holder")
	case len(l.Details) > 0 || len(l.Parameters) > 0: // a resource server must enforce them (RFC 9396, section 9)
		return who, grant, unproven("the access token is narrowed by authorization_details, which this endpoint does not enforce: request one without them")
	case l.Subject != "":
		return who, grant, unproven("the access token was issued on behalf of " + l.Subject + ", which this endpoint does not support")
	}
	domain, _, err := broker.ParseSPIFFEID(l.Holder)
	if err != nil {
		return who, grant, unproven("the access token was not issued to a workload")
	}
	return broker.Identity{
		ID: l.Holder, Kind: broker.KindWorkload, Attested: l.Attested, TrustDomain: domain, Paths: broker.SPIFFEPaths(l.Holder),
		Proof: broker.Proof{Method: broker.MethodBrokerToken, SHA256: sha256.Sum256([]byte(t.Token)), Expires: l.Expires},
	}, mcpGrant{scopes: l.Scopes}, nil
}
