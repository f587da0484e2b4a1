package egress

import (
	"context"
	"crypto/sha1" // RFC 6455, section 4.2.2
	"encoding/base64"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"accessbroker.internal/egress/scrub"
)

// Upgrade makes a call that asks for a WebSocket (RFC 6455) under the rules of any
// entitlement. The body of an answer with status 101 is an io.ReadWriteCloser: it reads
// the frames of the host without the credential, and writes frames to the host. The error
// is a *Refusal.
//
// The credential of the call is used at its start only. The bounds on bodies and times
// apply to the frames.
func (t *Transport) Upgrade(r *http.Request) (*http.Response, error) {
	return t.finish(r, call{websocket: true})
}

const acceptGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// maxProtocol bounds the name of a subprotocol. Some programs put a token there.
const maxProtocol = 64

// askUpgrade adds the headers of a WebSocket to a call. It offers no extensions, because
// compressed frames can't be searched for the credential.
func askUpgrade(out, callers http.Header) *Refusal {
	key := callers.Get("Sec-Websocket-Key")
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) != 16 || callers.Get("Sec-Websocket-Version") != "13" {
		return refuse(CodeHeader, "use a client of RFC 6455", "The call asks for a WebSocket without the headers of one")
	}
	out.Set("Connection", "Upgrade")
	out.Set("Upgrade", "websocket")
	out.Set("Sec-Websocket-Version", "13")
	out.Set("Sec-Websocket-Key", key)
	var protocols []string
	for p := range strings.SplitSeq(strings.Join(callers["Sec-Websocket-Protocol"], ","), ",") {
		p = strings.TrimSpace(p)
		if lower := strings.ToLower(p); isToken(p) && len(p) <= maxProtocol && !strings.Contains(lower, "authorization") && !strings.Contains(lower, "bearer") {
			protocols = append(protocols, p)
		}
	}
	if protocols != nil {
		out.Set("Sec-Websocket-Protocol", strings.Join(protocols, ", "))
	}
	return nil
}

// switched prepares an answer that became a WebSocket.
func (x *exchange) switched(resp *http.Response, sent http.Header, s *scrub.Scrubber) *Refusal {
	host, ok := resp.Body.(io.ReadWriteCloser)
	sum := sha1.Sum([]byte(sent.Get("Sec-Websocket-Key") + acceptGUID))
	if !ok || !x.websocket || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") || resp.Header.Get("Sec-Websocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) ||
		len(resp.Header["Sec-Websocket-Extensions"]) > 0 || !offered(sent, resp.Header.Get("Sec-Websocket-Protocol")) {
		return refuse(CodeUnreadable, "call another path", "The host changed the protocol to one that the call did not request")
	}
	dropHeaders(resp.Header)
	s.Header(resp.Header)
	// net/http no longer closes the connection with the context.
	context.AfterFunc(x.watch.ctx, func() { _ = host.Close() })
	frames, in := io.Pipe()
	w := &socket{host: host, frames: frames, x: x}
	w.left.Store(x.grant.limits.request)
	received := &bounded{Writer: in}
	received.left.Store(x.grant.limits.answer)
	w.received = received
	go func() {
		err := s.Frames(received, &watchedBody{ReadCloser: host, watch: x.watch})
		if err == nil {
			err = io.EOF // the host closed the WebSocket
		} else {
			err = readRefusal(err)
		}
		_ = in.CloseWithError(err)
	}()
	resp.Body = w
	return nil
}

// offered reports whether a host chose one of the subprotocols of a call, or none.
func offered(sent http.Header, chosen string) bool {
	return chosen == "" || slices.Contains(strings.Split(sent.Get("Sec-Websocket-Protocol"), ", "), chosen)
}

// A socket is a WebSocket after its start.
type socket struct {
	host   io.ReadWriteCloser
	frames *io.PipeReader
	x      *exchange
	left   atomic.Int64 // bytes that the caller may send

	received *bounded
}

func (s *socket) Read(p []byte) (int, error) { return s.frames.Read(p) }

func (s *socket) Write(p []byte) (int, error) {
	if s.left.Add(-int64(len(p))) < 0 {
		_ = s.Close()
		return 0, s.x.tooLarge()
	}
	return s.host.Write(p)
}

func (s *socket) Close() error {
	_ = s.frames.CloseWithError(context.Canceled)
	err := s.host.Close()
	s.x.ended.Do(func() {
		l := s.x.grant.limits
		s.x.outcome.Sent = l.request - max(s.left.Load(), 0)
		s.x.finish(l.answer-max(s.received.left.Load(), 0), nil)
	})
	return err
}

// bounded ends a WebSocket whose host sends more than a rule allows.
type bounded struct {
	io.Writer
	left atomic.Int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left.Add(-int64(len(p))) < 0 {
		return 0, refuse(CodeAnswerTooLarge, nextTooLarge, "The host sent more than its rule allows")
	}
	return b.Writer.Write(p)
}
