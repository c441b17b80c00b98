"""An address of a Ray cluster at which nothing listens is an error at once."""

import socket

import pytest

from ossicle.errors import OssicleError
from ossicle.on_ray import check_port


def test_a_closed_port_is_an_error_and_an_open_one_is_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_port(address)
    with pytest.raises(OssicleError, match=f"--ray {address}: nothing answers"):
        check_port(address)


@pytest.mark.parametrize("address", ["local", "auto"])
def test_words_are_no_addresses(address):
    check_port(address)


@pytest.mark.parametrize("address", ["127.0.0.1:99999999", "no.such.host.invalid:6379"])
def test_impossible_addresses_are_errors(address):
    with pytest.raises(OssicleError, match="nothing answers"):
        check_port(address)
