// Package browser is the browser of a person who logs in at the provider of a
// development world.
package browser

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"
)

// A Browser is the browser of a person who is logged in to a world's pages. It keeps
// cookies, and does not follow redirects by itself.
type Browser struct {
	client *http.Client
	pages  string
}

// LogIn logs a person in. pages is the URL of the pages.
func LogIn(ctx context.Context, pages, person string) (*Browser, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	b := &Browser{&http.Client{Jar: jar, Timeout: 10 * time.Second, CheckRedirect: stay}, pages}
	provider, err := b.Follow(ctx, http.MethodGet, pages+"/ui/login", nil)
	if err != nil {
		return nil, err
	}
	back, err := b.Follow(ctx, http.MethodPost, provider, url.Values{"person": {person}})
	if err != nil {
		return nil, err
	}
	_, err = b.Follow(ctx, http.MethodGet, back, nil)
	return b, err
}

// Pages returns the URL of the pages.
func (b *Browser) Pages() string { return b.pages }

// Follow makes a call that must be answered with a redirect, and returns its target.
func (b *Browser) Follow(ctx context.Context, method, where string, form url.Values) (next string, err error) {
	resp, err := b.do(ctx, method, where, form)
	if err != nil {
		return "", err
	}
	if next = resp.Header.Get("Location"); next == "" {
		return "", fmt.Errorf("opening %s: got %s, want a redirect", where, resp.Status)
	}
	return next, nil
}

// Post makes a call that must be answered with a page.
func (b *Browser) Post(ctx context.Context, where string, form url.Values) error {
	resp, err := b.do(ctx, http.MethodPost, where, form)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("opening %s: got %s, want %d", where, resp.Status, http.StatusOK)
	}
	return err
}

// do makes a call and closes the body of the answer.
func (b *Browser) do(ctx context.Context, method, where string, form url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, where, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", where, err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", where, err)
	}
	return resp, resp.Body.Close()
}

// AllowTerminal follows the instructions that "broker login" shows: it lets the terminal
// in as the person.
func (b *Browser) AllowTerminal(ctx context.Context, shown io.Reader) error {
	var where, code string
	for lines := bufio.NewScanner(shown); where == "" || strings.Contains(where, "/ui/device") && code == ""; {
		if !lines.Scan() {
			return fmt.Errorf("no address in the output of broker login: %w", cmp.Or(lines.Err(), io.EOF))
		}
		if _, after, found := strings.Cut(lines.Text(), b.pages); found {
			where = b.pages + after
		}
		if _, after, found := strings.Cut(lines.Text(), "type the code  "); found {
			code = after
		}
	}
	if code != "" {
		return b.Post(ctx, where, url.Values{"code": {code}, "decision": {"allow"}})
	}
	at, err := url.Parse(where)
	if err != nil {
		return err
	}
	form := at.Query()
	form.Set("decision", "allow")
	back, err := b.Follow(ctx, http.MethodPost, b.pages+at.Path, form)
	if err != nil {
		return err
	}
	return b.Post(ctx, back, nil)
}
