package server

import (
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Two standard ways to wait for a token at the token endpoint, over the request's row:
//
// Deferred Token Response (draft-ietf-oauth-deferred-token-response-01): a client that
// sends completion_mode=deferred gets a deferral_code if people must approve.
//
// CIBA (OpenID Connect Client-Initiated Backchannel Authentication Flow, Core 1.0), poll
// mode: see backchannel.go.
//
// Neither code is stored. A code is the request's id with what the client is bound to,
// encrypted and authenticated with a seal key: see broker.Sealer.Code.

// What a code is for.
const (
	deferralPurpose    = "deferral_code"
	backchannelPurpose = "auth_req_id"
)

// pollPurposes are the polling grants, with what their codes are for.
var pollPurposes = map[string]string{
	api.GrantDeferred:    deferralPurpose,
	api.GrantBackchannel: backchannelPurpose,
}

// pollParameters are the parameters of a poll, besides the code. A poll cannot change the
// request that it continues.
var pollParameters = []string{"grant_type", "client_id", "client_assertion", "client_assertion_type"}

// A waitCode is the content of a deferral_code or an auth_req_id.
type waitCode struct {
	request broker.RequestID
	mtls    bool         // the client was authenticated by its X.509-SVID
	jwt     bool         // requested_token_type was api.TokenTypeJWT
	typed   bool         // the type of authorization_details was api.ParametersDetail
	key     audit.Digest // of the DPoP proof; zero: none
}

// Flags in a code. A thumbprint follows the id if codeKey is set.
const (
	codeMTLS = 1 << iota
	codeKey
	codeJWT
	codeTyped
)

func (w waitCode) encode() []byte {
	flags := byte(0)
	for flag, set := range map[byte]bool{codeMTLS: w.mtls, codeKey: !w.key.IsZero(), codeJWT: w.jwt, codeTyped: w.typed} {
		if set {
			flags |= flag
		}
	}
	out := append([]byte{flags}, w.request[:]...)
	if !w.key.IsZero() {
		out = append(out, w.key[:]...)
	}
	return out
}

func decodeWaitCode(b []byte) (w waitCode, ok bool) {
	const short = 1 + len(w.request)
	if len(b) < short {
		return w, false
	}
	flags, rest := b[0], b[short:]
	w.request = broker.RequestID(b[1:short])
	w.mtls, w.jwt, w.typed = flags&codeMTLS != 0, flags&codeJWT != 0, flags&codeTyped != 0
	if flags&codeKey != 0 && len(rest) == len(w.key) {
		w.key, rest = audit.Digest(rest), nil
	}
	return w, len(rest) == 0 && flags&codeKey != 0 == !w.key.IsZero()
}

// newCode returns the code by which this client continues a request.
func (c *call) newCode(purpose string, w waitCode) string {
	w.mtls, w.key = c.who.Proof.Method == broker.MethodX509SVID, c.proof.Key
	return c.s.cfg.Sealer.Code(purpose, w.encode())
}

// readCode returns the content of a code. A code that is not one, and a code of another
// client, have the same answer.
func (c *call) readCode(purpose, text string) (waitCode, error) {
	unknown := refuse(broker.ErrInvalidCode, "the code is not known")
	raw, ok := c.s.cfg.Sealer.ReadCode(purpose, text)
	if !ok {
		return waitCode{}, unknown
	}
	w, ok := decodeWaitCode(raw)
	if !ok {
		return waitCode{}, unknown
	}
	r, err := c.s.cfg.Broker.Request(c.r.Context(), c.caller(), w.request)
	switch {
	case err != nil && broker.Code(err) != broker.Code(broker.ErrNotFound):
		return waitCode{}, err
	case err != nil || r.Requester.ID != c.who.ID:
		return waitCode{}, unknown
	case w.mtls && c.who.Proof.Method != broker.MethodX509SVID:
		return waitCode{}, refuse(broker.ErrInvalidCode, "the code is bound to the X.509-SVID of the client: call over TLS with it")
	case !w.key.IsZero() && w.key != c.proof.Key:
		return waitCode{}, refuse(broker.ErrInvalidDPoP, "the code is bound to a key: send a proof of it in the DPoP header")
	}
	c.about = w.request.String()
	return w, nil
}

// acceptsDeferral reports whether the client accepts a deferred response
// (completion_mode). Unknown modes are ignored.
func (c *call) acceptsDeferral() (bool, error) {
	modes := strings.Fields(c.form.get("completion_mode"))
	for i, mode := range modes {
		if slices.Contains(modes[:i], mode) {
			return false, refuse(broker.ErrInvalidRequest, "completion_mode repeats a value")
		}
	}
	return slices.Contains(modes, "deferred"), nil
}

// A deferral is what a client needs for polling, in a deferred response.
type deferral struct {
	code      string
	expiresIn int64
}

// deferToken lets the response have a deferral_code, if the client accepts one.
func (c *call) deferToken(r *broker.Request, details details) error {
	accepts, err := c.acceptsDeferral()
	if err != nil || !accepts {
		return err
	}
	w := waitCode{
		request: r.ID,
		jwt:     c.form.get("requested_token_type") == api.TokenTypeJWT,
		typed:   isTyped(details),
	}
	c.deferral = &deferral{c.newCode(deferralPurpose, w), secondsUntil(r.Lapses, c.now)}
	return nil
}

// howToPoll tells a client how to continue a request that waits for approval.
func (c *call) howToPoll() string {
	if c.deferral != nil {
		return "step=approval"
	}
	return "the request waits for approval: poll with request_id"
}

// isTyped reports whether the client used the broker's own type of authorization details.
func isTyped(d details) bool {
	return d.kind == api.ParametersDetail
}

// secondsUntil returns the whole seconds until a time, at least one.
func secondsUntil(at, now time.Time) int64 { return max(1, int64(at.Sub(now)/time.Second)) }

// isPoll reports whether the call continues a request by a code.
func (c *call) isPoll() bool { return pollPurposes[c.form.get("grant_type")] != "" }

// poll collects the token of the request that a code stands for.
func (s *Server) poll(c *call) (*broker.Issued, tokenForm, error) {
	purpose := pollPurposes[c.form.get("grant_type")]
	code := c.form.get(purpose)
	if code == "" {
		return nil, tokenForm{}, refuse(broker.ErrInvalidRequest, purpose+" is missing")
	}
	for name := range c.form {
		if name != purpose && !slices.Contains(pollParameters, name) && (slices.Contains(tokenParameters, name) || slices.Contains(exchangeOnly, name)) {
			return nil, tokenForm{}, refuse(broker.ErrInvalidRequest, "a poll cannot change the request that it continues: omit "+name)
		}
	}
	w, err := c.readCode(purpose, code)
	if err != nil {
		return nil, tokenForm{}, err
	}
	form := tokenForm{kind: api.TokenTypeAccessToken}
	if w.jwt {
		form.kind = api.TokenTypeJWT
	}
	if w.typed {
		form.detailType = api.ParametersDetail
	}
	issued, err := broker.Deferred{Broker: s.cfg.Broker}.Collect(c.r.Context(), c.caller(), w.request)
	if err != nil {
		return nil, form, s.pollError(c, w.request, err)
	}
	return issued, form, nil
}

// pollError returns the error of a poll. Its text names no person: error descriptions of
// deferred requests have no personal data (draft-ietf-oauth-deferred-token-response-01,
// "Progress Information in Errors").
func (s *Server) pollError(c *call, id broker.RequestID, err error) error {
	refusal := refusalOf(err)
	switch broker.Code(err) {
	case broker.Code(broker.ErrPending):
		if wait, tooOften := s.polls.count(id, c.now); tooOften {
			return &broker.Refusal{Err: broker.ErrPollsTooOften, RequestID: id, Retry: wait, Detail: "wait longer between polls: at least " + broker.FormatDuration(wait)}
		}
		return &broker.Refusal{Err: broker.ErrPending, RequestID: id, Detail: "step=approval"}
	case broker.Code(broker.ErrDenied):
		return &broker.Refusal{Err: broker.ErrDenied, RequestID: id, DeniedBy: refusal.DeniedBy, Reasons: refusal.Reasons, Detail: "the request was denied"}
	case broker.Code(broker.ErrNotFound):
		return refuse(broker.ErrInvalidCode, "the code is not known")
	}
	return err
}

// cancelCode withdraws the request of a code of the caller, if the token to revoke is one
// (RFC 7009). ok reports whether it is.
func (s *Server) cancelCode(c *call, token string) (ok bool, err error) {
	if strings.Contains(token, ".") {
		return false, nil // a JWT
	}
	for _, purpose := range []string{deferralPurpose, backchannelPurpose} {
		w, err := c.readCode(purpose, token)
		switch {
		case broker.Code(err) == broker.Code(broker.ErrInvalidCode):
			continue
		case err != nil:
			return false, err
		}
		return true, broker.Deferred{Broker: s.cfg.Broker}.Cancel(c.r.Context(), c.caller(), w.request)
	}
	return false, nil
}
