package tokensource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// The environment variables in which GitHub's runner tells a job where it can get a token
// (GitHub Actions, "OpenID Connect reference", "Methods for requesting the OIDC token").
const (
	GitHubURLVariable   = "ACTIONS_ID_TOKEN_REQUEST_URL"
	GitHubTokenVariable = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"
)

const (
	maxAnswer     = 64 << 10 // bytes
	fetchTimeout  = 30 * time.Second
	fetchAttempts = 3
	fetchPause    = time.Second
)

// errNoGitHubToken means that the job may not request tokens.
var errNoGitHubToken = errors.New(`GitHub offers this job no token: add "permissions: id-token: write" to the job (a pull request from a fork gets none)`)

// A GitHub requests tokens from GitHub Actions. The zero value has no job to request
// them for, and its Token returns an error.
type GitHub struct {
	URL          string       // of ACTIONS_ID_TOKEN_REQUEST_URL
	RequestToken string       // of ACTIONS_ID_TOKEN_REQUEST_TOKEN
	Audience     string       // usually the broker's URL
	HTTP         *http.Client // nil: http.DefaultTransport, with the system's roots and proxy settings
}

// Format prints the source without its token.
func (g GitHub) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "GitHub Actions") }

// Token requests a new token, which is valid for minutes. It tries again if GitHub does
// not answer or has a fault of its own.
func (g GitHub) Token(ctx context.Context) (string, error) {
	target, err := g.target()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		token, again, err := g.fetch(ctx, target)
		if err == nil {
			return token, nil
		}
		if !again || attempt == fetchAttempts || !sleep(ctx, time.Duration(attempt)*fetchPause) {
			return "", fmt.Errorf("requesting a token from GitHub Actions: %w", err)
		}
	}
}

// target returns the URL of the request. Anything but https would show the request token
// to the network.
func (g GitHub) target() (string, error) {
	if g.URL == "" || g.RequestToken == "" {
		return "", errNoGitHubToken
	}
	if g.Audience == "" {
		return "", errors.New("a token of GitHub Actions needs an audience")
	}
	u, err := url.Parse(g.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return "", fmt.Errorf("%s is not the https URL of a token service", GitHubURLVariable)
	}
	query := u.Query()
	query.Set("audience", g.Audience)
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// fetch makes one attempt. again means that another one may succeed.
func (g GitHub) fetch(ctx context.Context, target string) (token string, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", false, errors.New("its URL can't be used")
	}
	req.Header.Set("Authorization", "Bearer "+g.RequestToken)
	req.Header.Set("Accept", "application/json")
	resp, err := g.client().Do(req)
	if err != nil {
		return "", true, withoutURL(err)
	}
	defer func() { _ = resp.Body.Close() }() // read before
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return "", true, withoutURL(err)
	case resp.StatusCode/100 == 3:
		return "", false, fmt.Errorf("it redirects (HTTP %d), and a redirect would take the request token to another place", resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return "", resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("it answers HTTP %d", resp.StatusCode)
	case len(body) > maxAnswer:
		return "", false, fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
	}
	token, err = readAnswer(body)
	return token, false, err
}

func readAnswer(body []byte) (string, error) {
	var answer struct {
		Value string `json:"value"`
	}
	if json.Unmarshal(body, &answer) != nil { // its error could quote the answer
		return "", errors.New("its answer is not JSON")
	}
	token, err := clean(answer.Value)
	if err != nil {
		return "", fmt.Errorf("its token can't be used: %w", err)
	}
	return token, nil
}

// client returns the client that never follows a redirect.
func (g GitHub) client() *http.Client {
	c := http.Client{}
	if g.HTTP != nil {
		c = *g.HTTP
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// withoutURL removes the URL from an error: it has ids of the job.
func withoutURL(err error) error {
	var call *url.Error
	if errors.As(err, &call) {
		return call.Err
	}
	return err
}

// sleep reports whether d has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
