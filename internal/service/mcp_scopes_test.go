package service

import (
	"net/http/httptest"
	"testing"
)

// A call of which authentication has stated nothing has no scope.
func TestUnknownGrantHasNoScopes(t *testing.T) {
	t.Parallel()
	if scopes, bounded := mcpScopes(httptest.NewRequest("POST", mcpPath, nil)); len(scopes) > 0 || !bounded {
		t.Errorf("got %v, bounded %t, want no scopes", scopes, bounded)
	}
}
