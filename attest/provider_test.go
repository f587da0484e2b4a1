package attest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/oauth2"
)

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestProviderResponseIsLimited(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ size, want int }{{10, 10}, {maxResponse, maxResponse}, {maxResponse + 1, maxResponse}} {
		transport := &limitedTransport{next: roundTripFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{Body: io.NopCloser(bytes.NewReader(make([]byte, test.size)))}, nil
		})}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://login.acme.test/", http.NoBody)
		check(t, err)
		resp, err := transport.RoundTrip(req)
		check(t, err)
		body, err := io.ReadAll(resp.Body)
		if err != nil || len(body) != test.want {
			t.Errorf("%d bytes: got %d, %v; want %d", test.size, len(body), err, test.want)
		}
	}
}

func TestProviderErrorIsPassedOn(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	transport := &limitedTransport{next: roundTripFunc(func(*http.Request) (*http.Response, error) { return nil, down })}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://login.acme.test/", http.NoBody)
	check(t, err)
	if _, err := transport.RoundTrip(req); !errors.Is(err, down) {
		t.Errorf("got %v, want %v", err, down)
	}
}

func TestWithoutSecretsKeepsCode(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]string{
		"invalid_grant":         `the provider responded with "invalid_grant"`,
		"a\x1b[31m b\n~!\x7fé":  `the provider responded with "a[31mb~!"`,
		strings.Repeat("x", 99): `the provider responded with "` + strings.Repeat("x", 64) + `"`,
	} {
		got := withoutSecrets(&oauth2.RetrieveError{ErrorCode: code, ErrorDescription: "s3cret", Body: []byte("s3cret")})
		if got.Error() != want {
			t.Errorf("%q: got %q, want %q", code, got, want)
		}
	}
	if other := errors.New("x"); withoutSecrets(other) != other {
		t.Error("got another error for an error without a response")
	}
}
