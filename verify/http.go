package verify

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
)

// Handler returns a handler that calls next for requests with a valid token that has all the
// scopes, and answers all others with a challenge. FromContext returns the claims.
//
// The answers are those of RFC 6750, section 3, and RFC 9449, section 7.1:
//
//	401 without a token, or with one that is not valid
//	400 for a malformed request
//	403 for a valid token without a scope; the challenge names all scopes of the call
//	503 if the token can't be checked now
func (v *Verifier) Handler(next http.Handler, scopes ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := v.Request(r, scopes...)
		v.offerNonce(w)
		if err != nil {
			if v.cfg.Failed != nil {
				v.cfg.Failed(r, err)
			}
			v.Challenge(w, err, scopes...)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), claimsKey{}, c)))
	})
}

// Request checks the token of a request for which scopes are needed. The token must be in the
// Authorization header; tokens in a form or a query are refused.
func (v *Verifier) Request(r *http.Request, scopes ...string) (*Claims, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		return nil, ErrNoToken
	}
	if len(headers) > 1 || len(r.Header.Values("DPoP")) > 1 { // RFC 9449, section 4.3, number 1
		return nil, ErrInvalidRequest
	}
	scheme, token, ok := strings.Cut(headers[0], " ")
	switch {
	case strings.EqualFold(scheme, schemeBearer):
		scheme = schemeBearer
	case strings.EqualFold(scheme, schemeDPoP):
		scheme = schemeDPoP
	default:
		return nil, ErrNoToken // of another scheme
	}
	if !ok || token == "" || strings.ContainsAny(token, " ,\t") {
		return nil, ErrInvalidRequest
	}
	p := Presentation{Scheme: scheme, Certificate: peerCertificate(r), Proof: r.Header.Get("DPoP"), Method: r.Method}
	if scheme == schemeDPoP {
		if v.service == nil {
			return nil, badProof("the service does not accept proofs")
		}
		p.URL = v.service.Scheme + "://" + v.service.Host + v.service.Path + r.URL.EscapedPath()
	}
	return v.Token(r.Context(), token, p, scopes...)
}

func peerCertificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

// offerNonce sends the nonce for the next proof (RFC 9449, section 8.2).
func (v *Verifier) offerNonce(w http.ResponseWriter) {
	if v.nonces != nil {
		w.Header().Set("DPoP-Nonce", v.nonces.next(v.cfg.Now()))
		w.Header().Add("Access-Control-Expose-Headers", "DPoP-Nonce, WWW-Authenticate")
	}
}

// A refusal is how an error is answered.
type refusal struct {
	err    error
	status int
	code   string // error of RFC 6750, section 3.1, or RFC 9449, section 12.2
}

var refusals = []refusal{
	{ErrUnavailable, http.StatusServiceUnavailable, ""},
	{ErrNoToken, http.StatusUnauthorized, ""}, // RFC 6750, section 3.1: without a code
	{ErrInvalidRequest, http.StatusBadRequest, "invalid_request"},
	{ErrInsufficientScope, http.StatusForbidden, "insufficient_scope"},
	{ErrUseNonce, http.StatusUnauthorized, "use_dpop_nonce"},
	{ErrInvalidProof, http.StatusUnauthorized, "invalid_dpop_proof"},
	{ErrInvalidToken, http.StatusUnauthorized, "invalid_token"},
}

// Challenge answers a call that Request refused. The scopes are those of the call.
func (v *Verifier) Challenge(w http.ResponseWriter, err error, scopes ...string) {
	answer := refusal{ErrInvalidToken, http.StatusUnauthorized, "invalid_token"}
	for _, known := range refusals {
		if errors.Is(err, known.err) {
			answer = known
			break
		}
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if answer.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	} else {
		v.addChallenges(h, answer, err, scopes)
	}
	http.Error(w, http.StatusText(answer.status), answer.status)
}

func (v *Verifier) addChallenges(h http.Header, answer refusal, err error, scopes []string) {
	bearer := challenge{scheme: schemeBearer}
	dpop := challenge{scheme: schemeDPoP}
	for _, c := range []*challenge{&bearer, &dpop} {
		c.add("realm", v.cfg.Realm)
		c.add("error", answer.code)
		if answer.code != "" {
			c.add("error_description", err.Error())
		}
		c.add("scope", strings.Join(scopes, " "))
		c.add("resource_metadata", v.cfg.ResourceMetadata) // RFC 9728, section 5.1
	}
	dpop.add("algs", strings.Join(proofAlgorithms, " ")) // RFC 9449, section 7.1
	ofProof := errors.Is(err, ErrInvalidProof) || errors.Is(err, ErrUseNonce)
	if !ofProof {
		h.Add("WWW-Authenticate", bearer.String())
	}
	if ofProof || v.service != nil {
		h.Add("WWW-Authenticate", dpop.String())
	}
}

// A challenge is a value of WWW-Authenticate (RFC 9110, section 11.6.1).
type challenge struct {
	scheme     string
	parameters []string
}

// add adds a parameter that is not empty. Its value has no character that a quoted string
// would need to escape (RFC 6750, section 3).
func (c *challenge) add(name, value string) {
	if value != "" {
		clean := func(r rune) rune {
			if r < ' ' || r > '~' || r == '"' || r == '\\' {
				return '\''
			}
			return r
		}
		c.parameters = append(c.parameters, name+`="`+strings.Map(clean, value)+`"`)
	}
}

func (c *challenge) String() string {
	if len(c.parameters) == 0 {
		return c.scheme
	}
	return c.scheme + " " + strings.Join(c.parameters, ", ")
}
