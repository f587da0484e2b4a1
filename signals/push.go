package signals

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

// Path is the path of the push endpoints. The name of the transmitter follows.
const Path = "/signals/"

// pushesAtOnce bounds the pushes of one transmitter that are processed at the same time.
const pushesAtOnce = 16

// Handler receives the pushes of the transmitters (RFC 8935).
func Handler(list []*Transmitter) http.Handler {
	byName := map[string]*Transmitter{}
	for _, t := range list {
		if len(t.cfg.Tokens) > 0 {
			byName[t.cfg.Name] = t
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := byName[strings.TrimPrefix(r.URL.Path, Path)]
		if t == nil {
			refusePush(w, http.StatusNotFound, "", "no transmitter of this name pushes events")
			return
		}
		t.push(w, r)
	})
}

// push serves one push. A token that was accepted before is accepted again, because the
// answer may have been lost.
func (t *Transmitter) push(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refusePush(w, http.StatusMethodNotAllowed, "", "send the event with POST")
		return
	}
	if known, err := t.authenticate(r); err != nil {
		t.cfg.Log.ErrorContext(r.Context(), "the bearer token of a transmitter can't be read", "transmitter", t.cfg.Name, "err", err)
		refusePush(w, http.StatusServiceUnavailable, "", detailTryAgainLater)
		return
	} else if !known {
		t.cfg.Observe(t.cfg.Name, "", "unauthenticated")
		w.Header().Set("WWW-Authenticate", "Bearer")
		refusePush(w, http.StatusUnauthorized, codeUnauthenticated, "the bearer token of the transmitter is missing or wrong")
		return
	}
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	default:
		w.Header().Set("Retry-After", "1")
		refusePush(w, http.StatusTooManyRequests, "", "too many events at once: send fewer at the same time")
		return
	}
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/secevent+jwt" {
		refusePush(w, http.StatusUnsupportedMediaType, codeInvalidRequest, "send the event as application/secevent+jwt")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxSET))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		refusePush(w, http.StatusRequestEntityTooLarge, codeInvalidRequest, "the token is too long")
		return
	} else if err != nil {
		refusePush(w, http.StatusBadRequest, codeInvalidRequest, "the body did not arrive")
		return
	}
	answerPush(w, t.receive(r.Context(), strings.TrimSpace(string(body)), "", time.Now()))
}

func answerPush(w http.ResponseWriter, err error) {
	var rejection *Rejection
	switch {
	case err == nil:
		w.WriteHeader(http.StatusAccepted)
	case errors.As(err, &rejection):
		refusePush(w, http.StatusBadRequest, rejection.Code, rejection.Detail)
	default:
		detail := detailTryAgainLater
		if errors.Is(err, errFull) {
			detail = detailTooManyAreHeld
		}
		w.Header().Set("Retry-After", "60")
		refusePush(w, http.StatusServiceUnavailable, "", detail)
	}
}

// refusePush answers with an error (RFC 8935, section 2.3). Without a code, the error is
// one of HTTP.
func refusePush(w http.ResponseWriter, status int, code, detail string) {
	if code == "" {
		http.Error(w, detail, status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Language", "en")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(setError{Err: code, Description: detail}) // the transmitter may have left
}

// authenticate reports whether the request has one of the bearer tokens.
func (t *Transmitter) authenticate(r *http.Request) (bool, error) {
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if len(r.Header.Values("Authorization")) != 1 || !strings.EqualFold(scheme, "bearer") || got == "" {
		return false, nil
	}
	sum, known := sha256.Sum256([]byte(got)), 0
	var failed error
	for _, token := range t.cfg.Tokens {
		want, err := token()
		if err != nil {
			failed = err
			continue
		}
		wanted := sha256.Sum256([]byte(want))
		known |= subtle.ConstantTimeCompare(sum[:], wanted[:])
	}
	if known == 1 {
		return true, nil
	}
	return false, failed
}
