package audit

import (
	"strings"
	"testing"
)

func TestDigestAcceptsOnlyItsOwnText(t *testing.T) {
	t.Parallel()
	const good = "00ff0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab"
	var d Digest
	if err := d.UnmarshalText([]byte(good)); err != nil || d.String() != good {
		t.Errorf("got %s, %v", d, err)
	}
	for _, bad := range []string{"", good[1:], good + "0", strings.ToUpper(good), "g" + good[1:], good[:63] + " ", good[:63] + ":", good[:63] + "`", "\xff" + good[1:]} {
		if err := d.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
