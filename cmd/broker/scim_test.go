package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/internal/service"
)

// A token of "broker scim token" provisions until "broker scim revoke" ends it. The list
// shows no token.
func TestSCIMTokens(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.Edit("policies: policies\n", "policies: policies\nscim: {corp: {provider: login, subject: externalId, stale_after: 4h}}\n")
	w.StartIdentities()
	w.Start(io.Discard)
	command := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		args = append(args, "--admin-socket", w.AdminSocket())
		if code := run(t.Context(), args, terminal{in: strings.NewReader(""), out: &out, err: &errs, getenv: func(string) string { return "" }}); code != want {
			t.Fatalf("broker %s ended with %d: %s%s", strings.Join(args, " "), code, &out, &errs)
		}
		return out.String() + errs.String()
	}
	var made service.SCIMToken
	if err := json.Unmarshal([]byte(command(exitOK, "scim", "token", "corp", "--valid-for", "1h", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	client := w.Agent().HTTP
	status := func() int {
		t.Helper()
		// The agent's certificate is not that of the client, so the call is made without it.
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, made.URL+"/Users", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+made.Token)
		transport := client.Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.GetClientCertificate = nil
		transport.TLSClientConfig.Certificates = nil
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer transport.CloseIdleConnections()
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := status(); got != http.StatusOK {
		t.Errorf("the token: got %d, want 200", got)
	}
	list := command(exitOK, "scim", "tokens")
	if !regexp.MustCompile(`(?m)^`+made.ID+` +corp .* in force`).MatchString(list) || strings.Contains(list, made.Token) {
		t.Errorf("got the list\n%s", list)
	}
	if text := command(exitOK, "scim", "revoke", made.ID); !strings.Contains(text, "is revoked") {
		t.Errorf("got %s", text)
	}
	if got := status(); got != http.StatusUnauthorized {
		t.Errorf("the revoked token: got %d, want 401", got)
	}
	if list := command(exitOK, "scim", "tokens"); !strings.Contains(list, "revoked ") {
		t.Errorf("got the list\n%s", list)
	}
	for _, args := range [][]string{{"token", "other"}, {"token", "corp", "--valid-for", "9000h"}, {"revoke", "stk_x"}} {
		if text := command(exitFailed, append([]string{"scim"}, args...)...); !strings.Contains(text, "the broker refused") {
			t.Errorf("%v: got %s", args, text)
		}
	}
	if text := command(exitOK, "scim", "token", "corp"); !strings.Contains(text, "URL:   "+made.URL) || !strings.Contains(text, "Token: ey") {
		t.Errorf("got %s", text)
	}
}
