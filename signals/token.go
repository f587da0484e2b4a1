package signals

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/internal/strictjson"
)

// Bounds of a security event token.
const (
	MaxSET       = 32 << 10 // bytes
	maxDepth     = 10       // of its claims
	maxID        = 255      // bytes of a jti
	maxAudiences = 16
	maxEvents    = 8
	leeway       = time.Minute // how far the transmitter's clock may be ahead
)

// A Rejection is the error of a token that is not accepted. It does not quote the token.
type Rejection struct {
	Outcome signal.Outcome
	Code    string // for the transmitter (RFC 8935, section 2.4)
	Detail  string
}

func (r *Rejection) Error() string { return r.Detail }

// The codes of RFC 8935, section 2.4, and of SSF, section 8.1.4.1.
const (
	codeInvalidRequest   = "invalid_request"
	codeInvalidKey       = "invalid_key"
	codeInvalidIssuer    = "invalid_issuer"
	codeInvalidAudience  = "invalid_audience"
	codeUnauthenticated  = "authentication_failed"
	codeInvalidState     = "invalid_state"
	detailWrongState     = "the state is not that of a verification that the receiver requested"
	detailTryAgainLater  = "the receiver can't store the event now: send it again later"
	detailTooManyAreHeld = "too many events of this transmitter wait for a person's decision: send it again later"
)

func malformed(format string, args ...any) error {
	return &Rejection{signal.Malformed, codeInvalidRequest, fmt.Sprintf(format, args...)}
}

// A claimSet holds the claims of a verified token.
type claimSet struct {
	id       string
	issued   time.Time
	happened json.RawMessage // toe; nil: not stated
	subject  json.RawMessage // sub_id; nil: the event has a subject of its own
	events   map[string]json.RawMessage
}

// verify verifies a security event token (RFC 8417, SSF, section 4.1) and returns its
// claims. The error is a *Rejection, or that of a transmitter whose keys can't be read.
func (t *Transmitter) verify(ctx context.Context, token string, now time.Time) (claimSet, error) {
	if len(token) > MaxSET {
		return claimSet{}, malformed("the token is longer than %d bytes", MaxSET)
	}
	signed, err := jwks.ParseCompact(token)
	if err != nil {
		return claimSet{}, malformed("%v", err)
	}
	// SSF, section 4.1.1: explicit typing keeps ID tokens, access tokens and logout tokens
	// of the same issuer out.
	if typ := strings.ToLower(signed.Type); strings.TrimPrefix(typ, "application/") != "secevent+jwt" {
		return claimSet{}, malformed("the token is not a security event token: its typ is not secevent+jwt")
	}
	if err := t.checkSignature(ctx, signed); err != nil {
		return claimSet{}, err
	}
	claims, err := strictjson.Object(signed.Payload, maxDepth)
	if err != nil {
		return claimSet{}, malformed("the payload of the token %v", err)
	}
	return t.readClaims(claims, now)
}

// checkSignature returns an error unless a key of the transmitter verifies the token.
func (t *Transmitter) checkSignature(ctx context.Context, signed *jwks.Signed) error {
	var err error
	if t.remote != nil {
		err = t.remote.Verify(ctx, signed)
	} else {
		err = signed.Verify(t.cfg.Keys)
	}
	if unreadable := (*jwks.FetchError)(nil); err == nil || errors.As(err, &unreadable) {
		return err
	}
	return &Rejection{signal.BadSignature, codeInvalidKey, err.Error()}
}

func (t *Transmitter) readClaims(claims map[string]json.RawMessage, now time.Time) (c claimSet, err error) {
	if issuer, ok := strictjson.Text(claims["iss"]); !ok || issuer != t.cfg.Issuer {
		return c, &Rejection{signal.ForeignIssuer, codeInvalidIssuer, "the token has another issuer (iss)"}
	}
	audiences, ok := texts(claims["aud"])
	if !ok || !slices.Contains(audiences, t.cfg.Audience) {
		return c, &Rejection{signal.ForeignAudience, codeInvalidAudience, "the token is for another audience (aud)"}
	}
	// SSF, sections 4.1.3 and 4.1.6: they tell a token of another kind.
	for _, name := range []string{"sub", "exp", "nonce"} {
		if _, ok := claims[name]; ok {
			return c, malformed("the token has the claim %s, which a security event token must not have", name)
		}
	}
	if c.id, ok = strictjson.Text(claims["jti"]); !ok || !isID(c.id) {
		return c, malformed("the token has no id (jti) of 1 to %d visible characters", maxID)
	}
	if c.issued, ok = numericDate(claims["iat"]); !ok {
		return c, malformed("the token has no time of issue (iat)")
	}
	if err := t.checkTime(c.issued, now); err != nil {
		return c, err
	}
	if c.events, err = readEvents(claims["events"]); err != nil {
		return c, err
	}
	c.subject, c.happened = claims["sub_id"], claims["toe"]
	return c, nil
}

// checkTime returns an error for a time in the future, or further back than events are
// accepted.
func (t *Transmitter) checkTime(at, now time.Time) error {
	switch {
	case at.After(now.Add(leeway)):
		return &Rejection{signal.Future, codeInvalidRequest, "the token is from the future: compare the clocks of the transmitter and the receiver"}
	case now.Sub(at) > t.cfg.MaxAge:
		return &Rejection{signal.Old, codeInvalidRequest, "the token is older than this receiver accepts"}
	}
	return nil
}

func readEvents(raw json.RawMessage) (map[string]json.RawMessage, error) {
	events, err := strictjson.Object(raw, maxDepth)
	if err != nil || len(events) == 0 || len(events) > maxEvents {
		return nil, malformed("the token has no object with 1 to %d events (events)", maxEvents)
	}
	for _, event := range events {
		if event[0] != '{' {
			return nil, malformed("an event of the token is not an object")
		}
	}
	return events, nil
}

// texts returns a claim that is a string or a list of strings.
func texts(raw json.RawMessage) (list []string, ok bool) {
	if one, ok := strictjson.Text(raw); ok {
		return []string{one}, true
	}
	elements, ok := strictjson.Elements(raw)
	if !ok || len(elements) > maxAudiences {
		return nil, false
	}
	for _, e := range elements {
		text, ok := strictjson.Text(e)
		if !ok {
			return nil, false
		}
		list = append(list, text)
	}
	return list, true
}

// isID reports whether a jti can be stored and compared: two that look the same must not
// differ.
func isID(id string) bool {
	return id != "" && len(id) <= maxID && !strings.ContainsFunc(id, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsGraphic(r) })
}

// numericDate reads a NumericDate (RFC 7519, section 2).
func numericDate(raw json.RawMessage) (at time.Time, ok bool) {
	if len(raw) == 0 || raw[0] < '0' || raw[0] > '9' {
		return at, false
	}
	n, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || n > 253402300799 || math.IsNaN(n) { // the year 9999
		return at, false
	}
	whole, part := math.Modf(n)
	return time.Unix(int64(whole), int64(part*1e9)).UTC(), true
}
