package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress/scrub"
)

// An exchange is one call and its answer.
type exchange struct {
	t       *Transport
	r       *http.Request
	target  Target
	grant   *grant
	watch   *watch
	body    *requestBody // nil: none
	outcome Outcome
	ended   sync.Once

	credential *api.Credential
	websocket  bool
}

// run makes the call. The order of its steps is the protection: nothing is sent before
// the record is durable, and nothing is returned before the credential is removed.
func (x *exchange) run() (*http.Response, *Refusal) {
	if x.r.ContentLength > x.grant.limits.request {
		return nil, x.tooLarge()
	}
	credential, refusal := x.t.credential(x.r.Context(), x.target.Entitlement)
	if refusal != nil {
		return nil, refusal
	}
	x.credential, x.outcome.Lease = credential, credential.Lease
	x.watch = newWatch(x.r.Context(), x.grant.limits)
	out, refusal := x.request(credential)
	if refusal != nil {
		return nil, refusal
	}
	scrubber := x.t.secrets.scrubber(x.t.Credentials.Held(), credential, x.grant.further(credential))
	if refusal := x.announce(credential); refusal != nil {
		return nil, refusal
	}
	// From here on the host may have received the call.
	x.watch.waits()
	resp, err := x.t.pool(x.target.rule).RoundTrip(out)
	if err != nil {
		return nil, x.sendRefusal(err)
	}
	x.watch.rests()
	return x.answer(resp, out.Header, scrubber)
}

// announce records the call if the entitlement demands it.
func (x *exchange) announce(c *api.Credential) *Refusal {
	if !x.grant.egress.Record {
		return nil
	}
	r := refuse(CodeUnrecorded, "call again later", "The broker did not record the call, so the call was not made")
	if x.t.Meter == nil {
		return r
	}
	if r.Err = x.t.Meter.Announce(x.watch.ctx, c.Lease, Call{Method: methodOr(x.r.Method), Scheme: x.target.Scheme, Host: x.target.Host, Path: x.target.Path}); r.Err != nil {
		return r
	}
	return nil
}

// request returns the request that is sent. It has nothing of the caller's request but
// the method, the target, the allowed headers and the body.
func (x *exchange) request(c *api.Credential) (*http.Request, *Refusal) {
	u, refusal := urlOf(x.target)
	if refusal != nil {
		return nil, refusal
	}
	header := pick(x.r.Header, x.target.rule.headers)
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", "access-broker")
	}
	header.Set("Accept-Encoding", acceptEncoding(x.r))
	if x.websocket {
		if refusal := askUpgrade(header, x.r.Header); refusal != nil {
			return nil, refusal
		}
	}
	out := (&http.Request{Method: methodOr(x.r.Method), URL: u, Header: header, ContentLength: x.r.ContentLength}).WithContext(x.watch.ctx)
	if x.r.Body != nil && x.r.Body != http.NoBody {
		x.body = &requestBody{ReadCloser: x.r.Body, watch: x.watch, left: x.grant.limits.request}
		out.Body = x.body
	}
	if x.grant.egress.Inject.As == api.InjectSigV4 {
		return out, x.grant.sign(out, x.r.Header, c, time.Now())
	}
	return out, x.grant.inject(header, c)
}

// acceptEncoding returns what the host may encode the answer with. A range of an encoded
// answer could not be decoded.
func acceptEncoding(r *http.Request) string {
	if r.Header.Get("Accept-Encoding") == "" || r.Header.Get("Range") != "" || r.Method == http.MethodHead {
		return "identity"
	}
	return "gzip"
}

// hopHeaders are headers of an answer that the caller does not receive: those of the
// connection to the host, and those that would hand out another credential of the
// session or lead the caller elsewhere.
var hopHeaders = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Transfer-Encoding", "Upgrade", "Http2-Settings",
	"Set-Cookie", "Set-Cookie2", "Proxy-Authenticate", "Proxy-Authentication-Info", "Alt-Svc",
}

func dropHeaders(h http.Header) {
	for _, name := range hopHeaders {
		h.Del(name)
	}
}

// answer prepares an answer for the caller.
func (x *exchange) answer(resp *http.Response, sent http.Header, s *scrub.Scrubber) (*http.Response, *Refusal) {
	x.outcome.Status = resp.StatusCode
	withhold := func(r *Refusal) (*http.Response, *Refusal) {
		_ = resp.Body.Close() // the answer is withheld
		return nil, r
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if refusal := x.switched(resp, sent, s); refusal != nil {
			return withhold(refusal)
		}
		resp.Request, resp.TLS = x.r, nil
		return resp, nil
	}
	if resp.StatusCode < http.StatusOK { // RFC 9110, section 15; servers can't pass it on
		return withhold(refuse(CodeUnreachable, "call again later", "The answer of %s is not HTTP", x.target.Host))
	}
	limit := x.grant.limits.answer
	if resp.ContentLength > limit && x.r.Method != http.MethodHead {
		return withhold(refuse(CodeAnswerTooLarge, nextTooLarge, "The answer is longer than %d bytes", limit))
	}
	dropHeaders(resp.Header)
	dropHeaders(resp.Trailer)
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: x.watch}
	if err := s.Response(resp); err != nil {
		return withhold(refuse(CodeUnreadable, "request the answer without an encoding", "The answer has an encoding that can't be searched for the credential"))
	}
	clean := resp.Body
	masked := func() bool { return scrub.Masked(clean) }
	resp.Body = &answerBody{entitlement: x.target.Entitlement, scrubbed: masked, body: clean, left: limit, limit: limit, done: func(received int64, err error) {
		dropHeaders(resp.Trailer)
		var r *Refusal
		errors.As(err, &r)
		x.finish(received, r)
	}}
	resp.Request, resp.TLS = x.r, nil
	return resp, nil
}

// finish ends the call and counts it.
func (x *exchange) finish(received int64, r *Refusal) {
	if x.watch != nil {
		x.watch.end()
	}
	o := &x.outcome
	if x.body != nil {
		o.Sent = x.body.sent.Load()
	}
	o.Received, o.Outcome = received, OutcomeMade
	if r != nil {
		o.Code, o.Outcome = r.Code, OutcomeRefused
		if r.Code == CodeTimeout || r.Code == CodeUnreachable {
			o.Outcome = OutcomeFailed
		}
	}
	x.t.count(*o)
}

func (x *exchange) tooLarge() *Refusal {
	return refuse(CodeRequestTooLarge, "send less", "The body is longer than %d bytes", x.grant.limits.request)
}

// sendRefusal returns the refusal of a call without an answer. An error of net/http can
// contain text of the host, so the refusal has only the kind of the error.
func (x *exchange) sendRefusal(err error) *Refusal {
	var untrusted *tls.CertificateVerificationError
	switch cause := context.Cause(x.watch.ctx); {
	case x.body != nil && x.body.tooLarge.Load():
		return x.tooLarge()
	case cause != nil:
		return readRefusal(cause)
	case errors.Is(err, errAddress):
		return refuse(CodeAddress, "the operator of the broker can name the network in the addresses of the rule", "%s has an address that is not public, or one of a cloud's metadata service", x.target.Host)
	case errors.Is(err, errResolve):
		return refuse(CodeUnreachable, "check the name, and call again", "%s has no address", x.target.Host)
	case errors.As(err, &untrusted):
		return refuse(CodeUnreachable, "ask the operator of the host for a certificate that this machine trusts", "The certificate of %s is not trusted, or has another name", x.target.Host)
	}
	return refuse(CodeUnreachable, "call again later", "%s does not answer, or its answer is not HTTP", x.target.Host)
}
