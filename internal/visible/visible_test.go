package visible

import "testing"

func TestRune(t *testing.T) {
	for _, c := range []struct {
		r, before rune
		want      bool
	}{
		{'a', 0, true}, {'ñ', 'a', true}, {'日', 0, true}, {' ', 'a', true}, {'\u0301', 'e', true}, {'\ufe0f', '\u2764', true}, {'€', 0, true},
		{'\n', 'a', false}, {'\t', 'a', false}, {'\x1b', 'a', false}, {'\u0085', 'a', false}, {'\u2028', 'a', false},
		{'\u202e', 'a', false}, {'\u2066', 'a', false}, {'\u200e', 'a', false}, {'\u200b', 'a', false}, {'\ufeff', 'a', false}, {'\u00ad', 'a', false},
		{'\u200d', 'a', false}, {'\u200d', 0, false}, {'\u200d', '\u094d', true}, {'\u200c', '\u06cc', true}, {'\u200d', '\U0001f468', true}, {'\u200d', '\U0001f3fb', true},
		{'\u3164', 'a', false}, {'\u2800', 'a', false}, {'\U000e0041', 'a', false}, {'\U000e0101', 'a', false}, {'\ue000', 'a', false}, {'\ufffd', 'a', false},
	} {
		if got := Rune(c.r, c.before); got != c.want {
			t.Errorf("%U after %U: got %t, want %t", c.r, c.before, got, c.want)
		}
	}
}
