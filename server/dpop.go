package server

import (
	"encoding/base64"
	"net/http"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/dpop"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Proofs of possession (RFC 9449). A call of a route that accepts them is judged once, after
// its caller is known and before the route runs. The key in the proof is then part of the
// caller: what the call files or collects is bound to it.

// prove verifies the proof of possession, if the call has one. Every answer to such a call
// has a nonce for the next one (section 8.2).
func (c *call) prove() (err error) {
	if !dpop.Sent(c.r) {
		return nil
	}
	if c.s.cfg.DPoP == nil {
		return refuse(broker.ErrInvalidRequest, "DPoP is not accepted here")
	}
	c.offerNonce()
	c.proof, err = c.s.cfg.DPoP.Check(c.r, c.now)
	return err
}

func (c *call) offerNonce() {
	if c.s.cfg.DPoP != nil {
		c.w.Header()[dpop.NonceHeader] = []string{c.s.cfg.DPoP.Nonce(c.now)}
	}
}

// checkKeyParameter refuses a dpop_jkt (section 10) that is not the key of the proof.
func (c *call) checkKeyParameter() error {
	want := c.form.get("dpop_jkt")
	if want == "" || want == thumbprint(c.proof.Key) {
		return nil
	}
	return refuse(broker.ErrInvalidRequest, "dpop_jkt is not the thumbprint of the key in the DPoP header of this call")
}

// checkProvenToken refuses a proof of possession that names another token than the call.
func (c *call) checkProvenToken(token string) error {
	if !c.proof.IsFor(token) {
		return refuse(broker.ErrInvalidDPoP, "the ath of the DPoP proof is of another token")
	}
	return nil
}

// proofAlgorithms returns the algorithms of proofs, for the metadata (section 5.1).
func (s *Server) proofAlgorithms() []string {
	if s.cfg.DPoP == nil {
		return nil
	}
	return dpop.Algorithms()
}

// isOfProof reports whether an error is about a proof of possession, which has challenges of
// its own.
func isOfProof(err error) bool {
	return err == broker.ErrInvalidDPoP || err == broker.ErrUseDPoPNonce
}

// challengeProof sets the challenge to a call on /v1 whose proof of possession was refused.
func challengeProof(header http.Header, row errorRow, detail string) {
	header.Set("WWW-Authenticate", dpop.Challenge(row.oauth, asciiOnly(detail)))
}

// tokenType returns how a client presents the token of a lease: with a proof of its key (RFC
// 9449, section 7.1), or as RFC 6750 has it.
func tokenType(l *broker.Lease) string {
	if !l.KeyThumbprint.IsZero() {
		return "DPoP"
	}
	return "Bearer"
}

// confirmation returns what the token of a lease is bound to; nil: nothing.
func confirmation(l *broker.Lease) *api.Confirmation {
	if l.KeyThumbprint.IsZero() && l.Confirm.IsZero() {
		return nil
	}
	out := &api.Confirmation{KeyThumbprint: thumbprint(l.KeyThumbprint), X509SHA256: thumbprint(l.Confirm)}
	if !l.Confirm.IsZero() {
		out.SPIFFEID = l.Holder
	}
	return out
}

// thumbprint returns a thumbprint as confirmations have it; empty for the zero digest.
func thumbprint(d audit.Digest) string {
	if d.IsZero() {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(d[:])
}
