package service

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/scim"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// scimService authenticates the clients of the sources, and signs their tokens.
type scimService struct {
	keys    *token.Keys
	issuer  string            // the broker's URL
	clients map[string]string // sources by SPIFFE ID

	mu       sync.Mutex
	verified map[audit.Digest]broker.SCIMTokenID // guarded by mu; tokens whose signature was verified
}

// scimTokenType is the typ of the tokens, so that nothing else accepts one (RFC 8725,
// section 3.11).
const scimTokenType = "scim+jwt"

// Their keys sign for longer than any token is valid.
const (
	scimRotate  = directory.MaxTokenAge + 30*24*time.Hour
	scimPublish = 24 * time.Hour
)

// maxVerifiedTokens bounds what is remembered of verified tokens.
const maxVerifiedTokens = 1024

// openDirectory opens the directory of the sources in the operator's file.
func (s *Service) openDirectory(ctx context.Context) error {
	if len(s.config.SCIM) == 0 {
		return nil
	}
	service := &scimService{issuer: s.config.ExternalURL.String(), clients: map[string]string{}, verified: map[audit.Digest]broker.SCIMTokenID{}}
	var sources []directory.Source
	for _, c := range s.config.SCIM {
		sources = append(sources, c.Source)
		for _, id := range c.Clients {
			service.clients[id] = c.Name
		}
	}
	var err error
	service.keys, err = token.OpenKeys(ctx, token.KeysConfig{
		Store: s.store, Sealer: s.sealer, Purpose: "scim", Algorithm: "ES256",
		RotateEvery: scimRotate, PublishAhead: scimPublish, LongestTTL: directory.MaxTokenAge, Log: s.log, Duties: store.DutiesOf(s.store),
	}, time.Now())
	if err != nil {
		return err
	}
	d, err := directory.Open(ctx, directory.Config{Store: s.store, Rows: store.DirectoryRows(s.store), Fresh: store.ReplicasOf(s.store).Follow, Sources: sources, Log: s.log})
	if err != nil {
		return err
	}
	s.directory, s.scim = d, service
	s.loops = append(s.loops, d.Run, service.keys.Run)
	return nil
}

// scimSources adds the rules for the facts of the sources.
func (s *Service) scimSources(rules map[string]broker.SourceRule) {
	for _, c := range s.config.SCIM {
		rules[directory.FactSource(c.Name)] = broker.SourceRule{StaleAfter: c.StaleAfter, OnStale: c.OnStale, Silence: true, Governs: c.Governs}
	}
}

// Limits of a source's client. A full synchronization must leave room for issuing.
const (
	scimPerSecond = 1000
	scimAtOnce    = 16
)

// scimHandlers returns the handler of the protocol.
func (s *Service) scimHandlers() []server.Handler {
	if s.directory == nil {
		return nil
	}
	subjects := map[string]scim.Subject{}
	for _, c := range s.config.SCIM {
		subjects[c.Name], _ = scim.ParseSubject(c.Subject) // checked with the file
	}
	h, err := scim.NewHandler(scim.Config{Directory: s.directory, URL: s.config.ExternalURL.String(), Caller: s.scimCaller, Subjects: subjects, Log: s.log})
	if err != nil {
		panic(err) // the file was checked
	}
	return []server.Handler{{
		Pattern: scim.Path, Audience: server.SCIM, Open: true, Handler: h,
		Authenticate: s.authenticateSCIM, Remembers: s.scim.remembers, MaxBody: scim.MaxBody,
		CallsPerSecond: scimPerSecond, CallsAtOnce: scimAtOnce,
	}}
}

// scimCaller returns the caller of a request and its source.
func (s *Service) scimCaller(r *http.Request) (broker.Caller, string, error) {
	caller, err := server.CallerOf(r)
	if err != nil {
		return caller, "", err
	}
	if name, ok := strings.CutPrefix(caller.Actor.ID, scimPrefix); ok && caller.Actor.Kind == broker.KindProvisioner {
		return caller, name, nil
	}
	if name := s.scim.clients[caller.Actor.ID]; name != "" && caller.Actor.Proof.Method == broker.MethodX509SVID {
		return caller, name, nil
	}
	return caller, "", errNotAClient
}

// scimPrefix begins the identity of a client with a token. No person and no SPIFFE ID
// begins so.
const scimPrefix = "scim:"

var errNotAClient = &broker.Refusal{Err: broker.ErrUnauthenticated, Detail: "the caller is not a client of a source"}

// authenticateSCIM identifies a client by its token, or by its X.509-SVID. If a call has
// both, they must be of one source.
func (s *Service) authenticateSCIM(r *http.Request) (broker.Identity, error) {
	list := r.Header.Values("Authorization")
	hasCertificate := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	if len(list) == 0 {
		return s.verifier.Authenticate(r)
	}
	scheme, text, _ := strings.Cut(list[0], " ")
	if len(list) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return broker.Identity{}, errNotAClient
	}
	if err := s.directory.Refresh(r.Context(), time.Now()); err != nil { // another replica may have revoked the token
		return broker.Identity{}, err
	}
	who, err := s.scim.verify(s.directory, strings.TrimSpace(text), time.Now())
	if err != nil || !hasCertificate {
		return who, err
	}
	alone := r.Clone(r.Context())
	alone.Header.Del("Authorization")
	workload, err := s.verifier.Authenticate(alone)
	switch {
	case err != nil:
		return broker.Identity{}, err
	case scimPrefix+s.scim.clients[workload.ID] != who.ID:
		return broker.Identity{}, &broker.Refusal{Err: broker.ErrTwoIdentities, Detail: "the certificate and the token are of different clients"}
	}
	return who, nil
}

// scimClaims are the claims of a token.
type scimClaims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub"`
	ID       string `json:"jti"`
	Expires  int64  `json:"exp"`
}

func (c *scimService) audience() string { return c.issuer + strings.TrimSuffix(scim.Path, "/") }

// sign returns a token for a stored row.
func (c *scimService) sign(t *broker.SCIMToken, now time.Time) (string, error) {
	return c.keys.SignTyped(scimTokenType, map[string]any{
		"iss": c.issuer, "aud": c.audience(), "sub": scimPrefix + t.Source, "jti": t.ID.String(),
		"iat": t.Created.Unix(), "exp": t.Expires.Unix(),
	}, now)
}

func (c *scimService) remembers(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.verified[sha256.Sum256([]byte(text))]
	return ok
}

// verify returns the identity of the client that a token was signed for. The token counts
// only while its row is in force.
func (c *scimService) verify(d *directory.Directory, text string, now time.Time) (broker.Identity, error) {
	hash := audit.Digest(sha256.Sum256([]byte(text)))
	c.mu.Lock()
	id, known := c.verified[hash]
	c.mu.Unlock()
	if !known {
		var claims scimClaims
		if err := c.keys.VerifyTyped(scimTokenType, text, now, &claims); err != nil {
			return broker.Identity{}, errNotAClient
		}
		var err error
		if id, err = broker.ParseSCIMTokenID(claims.ID); err != nil || claims.Issuer != c.issuer || claims.Audience != c.audience() {
			return broker.Identity{}, errNotAClient
		}
		t, ok := d.Token(id, now)
		if !ok || claims.Subject != scimPrefix+t.Source || claims.Expires != t.Expires.Unix() {
			return broker.Identity{}, errNotAClient
		}
	}
	t, ok := d.Token(id, now)
	if !ok || !slices.ContainsFunc(d.Sources(), func(s directory.Source) bool { return s.Name == t.Source }) {
		return broker.Identity{}, errNotAClient
	}
	if !known {
		c.remember(hash, id)
	}
	return broker.Identity{
		ID: scimPrefix + t.Source, Kind: broker.KindProvisioner,
		Proof: broker.Proof{Method: broker.MethodSCIMToken, SHA256: hash, Expires: t.Expires},
	}, nil
}

func (c *scimService) remember(hash audit.Digest, id broker.SCIMTokenID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.verified) >= maxVerifiedTokens {
		clear(c.verified)
	}
	c.verified[hash] = id
}

// directoryGauges describes the sources for metrics.
func (s *Service) directoryGauges() (list []server.DirectoryGauge) {
	if s.directory == nil {
		return nil
	}
	now := time.Now()
	for name, c := range s.directory.Count() {
		g := server.DirectoryGauge{Source: name, Active: float64(c.Active), Inactive: float64(c.Users - c.Active), Groups: float64(c.Groups), Member: float64(c.Members), Silence: -1}
		if !c.Heard.IsZero() {
			g.Silence = now.Sub(c.Heard).Seconds()
		}
		list = append(list, g)
	}
	return list
}

// A SCIMToken is a token of a client, as the admin socket lists it. Token is set only when
// the token is made.
type SCIMToken struct {
	ID      string    `json:"id"`
	Source  string    `json:"source"`
	By      string    `json:"by,omitempty"`
	Created time.Time `json:"created_at"`
	Expires time.Time `json:"expires_at"`
	Revoked time.Time `json:"revoked_at,omitzero"`
	URL     string    `json:"url,omitempty"`
	Token   string    `json:"token,omitempty"`
}

func showSCIMToken(t *broker.SCIMToken) SCIMToken {
	return SCIMToken{ID: t.ID.String(), Source: t.Source, By: t.By, Created: t.Created, Expires: t.Expires, Revoked: t.Revoked}
}

// NewSCIMToken signs a token for the client of a source. Its record is durable before it
// is returned.
func (s *Service) NewSCIMToken(ctx context.Context, caller broker.Caller, source string, lasts time.Duration) (SCIMToken, error) {
	t, err := s.directory.AddToken(ctx, caller, source, lasts)
	if err != nil {
		return SCIMToken{}, err
	}
	shown := showSCIMToken(t)
	shown.URL = s.scim.audience()
	shown.Token, err = s.scim.sign(t, caller.At)
	return shown, err
}

// handleSCIM adds the operations on the clients' tokens to the admin socket.
func (s *Service) handleSCIM(mux *http.ServeMux) {
	handle := func(pattern string, f func(*http.Request, broker.Caller) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			who, err := operatorOf(r)
			var answer any
			switch {
			case err != nil:
			case s.directory == nil:
				err = &broker.Refusal{Err: broker.ErrNotFound, Detail: "the operator's file has no source in scim"}
			default:
				answer, err = f(r, broker.Self(who, time.Now()))
			}
			status := http.StatusOK
			if err != nil {
				status, answer = http.StatusUnprocessableEntity, map[string]string{"error": err.Error()}
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	handle("POST /admin/scim/tokens", func(r *http.Request, caller broker.Caller) (any, error) {
		lasts, err := time.ParseDuration(r.URL.Query().Get("valid_for"))
		if err != nil {
			return nil, &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: "valid_for is a duration, such as 4320h"}
		}
		return s.NewSCIMToken(r.Context(), caller, r.URL.Query().Get("source"), lasts)
	})
	handle("GET /admin/scim/tokens", func(_ *http.Request, caller broker.Caller) (any, error) {
		list := []SCIMToken{}
		for _, t := range s.directory.Tokens(caller.At) {
			list = append(list, showSCIMToken(t))
		}
		return list, nil
	})
	handle("POST /admin/scim/tokens/{id}/revoke", func(r *http.Request, caller broker.Caller) (any, error) {
		id, err := broker.ParseSCIMTokenID(r.PathValue("id"))
		if err != nil {
			return nil, &broker.Refusal{Err: broker.ErrNotFound, Detail: "this is not the id of a token: list them with \"broker scim tokens\""}
		}
		t, err := s.directory.RevokeToken(r.Context(), caller, id)
		if err != nil {
			return nil, err
		}
		return showSCIMToken(t), nil
	})
}
