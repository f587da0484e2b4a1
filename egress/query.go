package egress

import (
	"net/url"
	"slices"
	"strings"
)

// credentialParameters are the names of query parameters that carry a credential
// (RFC 6750, section 2.3, and what common APIs and AWS have), in lower case without
// punctuation. A caller's own credential could replace the injected one, or send data to
// an account of the caller's on an allowed host.
var credentialParameters = []string{
	"accesstoken", "apikey", "authtoken", "authorization", "auth", "clientsecret", "idtoken", "jwt", "oauthtoken", "password", "privatetoken", "jobtoken", "refreshtoken",
	"accesskey", "secretkey", "sessiontoken", "awsaccesskeyid", "signature", "sig", "xamzcredential", "xamzsignature", "xamzsecuritytoken", "xgoogcredential", "xgoogsignature",
}

// overrideParameters change the method of a call for some servers. Only their exact form
// does, because "method" alone is a common parameter.
var overrideParameters = []string{"_method", "x-http-method", "x-http-method-override", "x-method-override"}

// checkQuery refuses parameters that a rule does not allow. Both "&" and ";" separate
// parameters, because servers differ.
func checkQuery(query string, allowed []string) *Refusal {
	if query == "" {
		return nil
	}
	for part := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		raw, _, _ := strings.Cut(part, "=")
		name, err := url.QueryUnescape(raw)
		if err != nil {
			return refuse(CodeQuery, "percent-encode each parameter of the query", "The query has a wrong percent-encoding")
		}
		if slices.Contains(allowed, name) {
			continue
		}
		if allowed != nil {
			return refuse(CodeQuery, "send only these parameters: "+strings.Join(allowed, ", "), "The query has a parameter that the rules do not allow")
		}
		if lower := strings.ToLower(name); slices.Contains(overrideParameters, strings.TrimSpace(lower)) {
			return refuse(CodeQuery, "call with the method itself", "The query overrides the method")
		}
		if isCredentialParameter(name) {
			return refuse(CodeQuery, "remove the parameter; the credential is added for you", "The query has a parameter that carries a credential")
		}
	}
	return nil
}

// isCredentialParameter ignores case, punctuation and the brackets of lists, as servers do.
func isCredentialParameter(name string) bool {
	if len(name) > 64 {
		name = name[:64]
	}
	var plain [64]byte
	n := 0
	for i := range len(name) {
		b := name[i]
		if b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		if isAlphanumeric(b) {
			plain[n] = b
			n++
		}
	}
	return slices.Contains(credentialParameters, string(plain[:n]))
}
