package service_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
)

// The Retry-After of a Vault reaches the broker's caller unchanged.
func TestRetryAfterOfVaultReachesCaller(t *testing.T) {
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "17")
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"errors": ["request path \"auth/token/create\": rate limit quota exceeded"]}`)
	}))
	t.Cleanup(vault.Close)
	w := brokertest.NewWorld(t)
	permit := `@id("orders") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"orders-db-ro");`
	if err := os.WriteFile(w.Path("policies/vault.cedar"), []byte(permit), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Edit("issuers:\n", fmt.Sprintf("issuers:\n  vault: {vault: {address: %q, auth: {agent: true}, token_role: leases}}\n", vault.URL))
	w.Edit("entitlements:\n", "entitlements:\n  orders-db-ro: {issuer: vault, vault: {path: database/creds/orders-ro}}\n")
	w.StartIdentities()
	w.Start(io.Discard)
	_, _, err := w.Agent().AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-db-ro"})
	var refusal *api.Error
	if !errors.As(err, &refusal) || refusal.Code != api.IssuerUnavailable || refusal.Status != http.StatusServiceUnavailable || refusal.RetryAfter != 17*time.Second {
		t.Errorf("got %+v, want %s after 17s", err, api.IssuerUnavailable)
	}
}
