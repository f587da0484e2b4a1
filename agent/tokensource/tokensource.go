// Package tokensource gets the tokens with which a workload without SPIFFE proves its
// identity to a broker: the OIDC token that its platform issues. The token is in a file
// (a Kubernetes volume), in an environment variable (GitLab, CircleCI), or the platform
// issues one on request (GitHub Actions).
//
// Each source is a function for api.Client.Token. A source reads or fetches the token for
// every call, so a token that the platform renews is used at once. No error contains a
// token.
package tokensource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxToken bounds a token in bytes.
const maxToken = 16 << 10

// A Source returns the token for a call.
type Source func(context.Context) (string, error)

// File returns the token in a file, such as one of a Kubernetes projected volume. The
// file is read for every call, because kubelet replaces the token before it expires.
func File(path string) Source {
	return func(context.Context) (string, error) {
		text, err := readBounded(path)
		if err != nil {
			return "", fmt.Errorf("reading the token file: %w", err)
		}
		token, err := clean(text)
		if err != nil {
			return "", fmt.Errorf("reading the token file %s: %w", path, err)
		}
		return token, nil
	}
}

// readBounded reads at most one byte more than the longest token.
func readBounded(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	return string(text), errors.Join(err, f.Close())
}

// Variable returns the token in an environment variable. getenv is usually os.Getenv.
func Variable(getenv func(string) string, name string) Source {
	return func(context.Context) (string, error) {
		text := getenv(name)
		if strings.TrimSpace(text) == "" {
			return "", fmt.Errorf("the environment variable %s has no token", name)
		}
		token, err := clean(text)
		if err != nil {
			return "", fmt.Errorf("reading the environment variable %s: %w", name, err)
		}
		return token, nil
	}
}

// clean removes the white space around a token, and refuses what can't be the value of a
// header (RFC 6750, section 2.1).
func clean(text string) (string, error) {
	token := strings.TrimSpace(text)
	switch {
	case token == "":
		return "", errors.New("it is empty")
	case len(token) > maxToken:
		return "", fmt.Errorf("it is longer than %d bytes", maxToken)
	case strings.IndexFunc(token, notToken) >= 0:
		return "", errors.New("it has characters that no token has")
	}
	return token, nil
}

// notToken reports whether a bearer token can't have the character.
func notToken(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("-._~+/=", r)
}
